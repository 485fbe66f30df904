"""The reward server: scorers behind HTTP. Needs the `serve` extra.

A request passes `admission.py` (token, size, capacity); a thread parses and decodes it (`parsing/`);
`batching.py` scores it together with other waiting requests; `app.py` answers. The server never unpickles
data of a request, fetches an address from it, or opens a path that it names.
"""

from imagereward.serve.app import create_app
from imagereward.serve.limits import Limits

__all__ = ["Limits", "create_app"]
