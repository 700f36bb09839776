#!/usr/bin/env bash
# A word that is added to CLIP's vocabulary, as textual inversion does it, becomes the end of every text it stands
# in. CLIP's text feature is read at the largest token number, which is the end's until a number is added behind it;
# under the causal mask the feature then knows nothing of what follows. "a photo of <thing> on the beach" and "a
# photo of <thing> in a dark room" have one feature, to the bit.
#
# open_clip's tokenizer takes such words (additional_special_tokens) and its towers read the largest number unless
# the config says pool_type="eos". transformers reads the end that its config names, but where that is 2, which is
# what older configs hold and which is never CLIP's end, it reads the largest number. Neither says a word.
#
# Exits with 0 while that is so, and with 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 open_clip_torch==3.3.0 transformers==5.24.0
"$folder/venv/bin/python" - <<'P'
import sys
import warnings

import open_clip
import torch
import transformers

print(f"open_clip {open_clip.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
warnings.simplefilter("error")
torch.manual_seed(0)
tokenizer = open_clip.SimpleTokenizer(additional_special_tokens=["<thing>"])
ENDINGS = ("on the beach", "in a dark room")
added = tokenizer([f"a photo of <thing> {ending}" for ending in ENDINGS])
plain = tokenizer([f"a photo of a dog {ending}" for ending in ENDINGS])
end, words = tokenizer.eot_token_id, tokenizer.vocab_size
print(f"the end is number {end}, the added word number {int(added.max())}")

SMALL = {"layers": 2, "width": 64}
VISION = {**SMALL, "head_width": 32, "patch_size": 8, "image_size": 32}


def of_open_clip(**pooling):
    """Return open_clip's text features as a function of token numbers."""
    text = {**SMALL, "heads": 2, "vocab_size": words, **pooling}
    return open_clip.CLIP(embed_dim=16, vision_cfg=VISION, text_cfg=text).eval().encode_text


def of_transformers(number):
    """Return transformers' text features under a config that names the end by a number."""
    config = transformers.CLIPTextConfig(
        vocab_size=words, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=end - 1, eos_token_id=number)
    model = transformers.CLIPTextModel(config).eval()
    return lambda ids: model(input_ids=ids).pooler_output


cases = {
    "open_clip": (of_open_clip(), True),
    "open_clip, pool_type='eos'": (of_open_clip(pool_type="eos", eos_id=end), False),
    "transformers, eos_token_id=2": (of_transformers(2), True),
    f"transformers, eos_token_id={end}": (of_transformers(end), False),
}
same = True
for name, (features, deaf) in cases.items():
    with torch.no_grad():
        first, second = features(added)
        other = features(plain)
    alike = torch.equal(first, second)
    print(f"{name}: two texts that differ behind the added word have the same feature: {alike}; behind a word that "
          f"was there: {torch.equal(*other)}")
    same = same and alike == deaf and not torch.equal(*other)
print("as written above" if same else "this has changed")
sys.exit(0 if same else 1)
P
