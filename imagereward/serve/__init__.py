"""The reward server: scorers behind HTTP. Needs the `serve` extra.

A request passes `guard.py` (token, room, size), is read and decoded by a thread (`bodies.py`,
`pictures.py`), waits in `batching.py` to be scored together with what others asked, and is answered by
`app.py`. Nothing from outside is unpickled, fetched, or taken for a path.
"""

from imagereward.serve.app import create_app
from imagereward.serve.limits import Limits

__all__ = ["Limits", "create_app"]
