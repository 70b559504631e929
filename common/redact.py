"""URLs without their passwords."""

from __future__ import annotations

import re

# The password of the login, of the Sentinels, or of a key.
PASSWORD_OPTION = re.compile(r"([?&]\w*password=)[^&]*")


def redact(url: str) -> str:
    """Return the URL without its passwords, for messages. This also works for a malformed URL."""
    url = PASSWORD_OPTION.sub(r"\1***", url)
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    if "@" not in rest or rest.startswith("/"):
        return f"{scheme}{mark}{rest}"
    login, _, place = rest.rpartition("@")
    # A login without a colon may be a password.
    user = f"{login.partition(':')[0]}:" if ":" in login else ""
    return f"{scheme}{mark}{user}***@{place}"
