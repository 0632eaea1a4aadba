"""Downloads from the Hugging Face Hub that say so at once when there is no network, instead of retrying."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import BadInput

_PATIENCE_S = 3.0


def reachable() -> bool:
    """True when the hub (or the mirror named in HF_ENDPOINT), asked once through any proxy, answers in time."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=_PATIENCE_S):
            return True
    except urllib.error.HTTPError:  # it answered, if only to refuse
        return True
    except OSError:
        return False


@contextmanager
def from_hub(what: str) -> Iterator[None]:
    """Let the body download `what`; without network only the local cache is used and its absence is BadInput."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    before = constants.HF_HUB_OFFLINE
    online = reachable()
    constants.HF_HUB_OFFLINE = before or not online
    try:
        yield
    except HfHubHTTPError as e:
        raise BadInput(f"{what} could not be downloaded: {str(e).splitlines()[0]}") from e
    except (LocalEntryNotFoundError, OSError) as e:
        if online:
            raise BadInput(f"{what} could not be loaded from the Hugging Face Hub: {str(e).splitlines()[0]}") from e
        raise BadInput(
            f"{what} cannot be had: not in the local cache, and the Hugging Face Hub cannot be reached; connect, "
            "or give a checkpoint directory or NAME@weights.safetensors instead."
        ) from e
    finally:
        constants.HF_HUB_OFFLINE = before
