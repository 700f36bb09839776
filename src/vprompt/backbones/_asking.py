"""Asking: does an address answer? Asked once a process and quickly, and ahead of time if possible.

Nothing heavy is imported here, so that a command can ask while torch and timm load.
"""

import re
import threading

from vprompt.core import registry

SECONDS = 3.0
_GATEWAYS = (502, 503, 504)  # what a proxy says for a host that it cannot reach
_ANSWERS: dict[str, str] = {}  # what each address said in this process: nothing where it answered
_ASKED: dict[str, threading.Thread] = {}
# A name that timm, open_clip or a hub may know; a place on disk and a spec are none.
_OF_A_HUB = re.compile(r"(hf:|hf-hub:)?[\w.-]+(/[\w.-]+)?(,\w+)?")


def ahead(model: object) -> None:
    """Begin to ask the hub where the name of a model looks as if that will be wanted.

    A plug-in of that name, ours or another's, says itself whether it wants a hub.
    """
    from huggingface_hub import constants

    if not isinstance(model, str) or not _OF_A_HUB.fullmatch(model) or constants.HF_HUB_OFFLINE:
        return
    if model not in registry.names("backbones"):
        _ask(constants.ENDPOINT)


def problem(address: str) -> str:
    """Return why an address does not answer, or nothing where it does.

    One that answered is not asked again; one that did not is, for a network may come back.
    """
    if _ANSWERS.get(address) == "":
        return ""
    if address not in _ASKED:
        _ask(address)
    _ASKED.pop(address).join(SECONDS + 0.5)  # looking up a name has no timeout of its own
    return _ANSWERS.get(address, f"no answer in {SECONDS:.0f} s")


def _ask(address: str) -> None:
    from huggingface_hub.utils import get_session

    _ANSWERS.pop(address, None)

    def ask() -> None:
        try:
            status = get_session().head(address, timeout=SECONDS).status_code
        except Exception as error:  # which HTTP library raises depends on huggingface_hub's age
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            _ANSWERS[address] = said[:100].rstrip(".")
        else:
            _ANSWERS[address] = f"a proxy answers {status}" if status in _GATEWAYS else ""

    _ASKED[address] = threading.Thread(target=ask, daemon=True)
    _ASKED[address].start()
