"""Known: copies of data sets that are known to be bad, by the fingerprint of one of their splits.

A fingerprint is what `vprompt data verify` prints: of the files, or of the pixels, which also
recognises a copy that was packed again. The list is empty until somebody has both a bad copy and
the proof; the sentence is printed as it stands, so it says what is wrong and where to read more.
"""

KNOWN_BAD: dict[str, str] = {}
