"""Print the users of Redis as an ACL file, for the passwords in a folder.

Each user has its password in a file of its name. The ACL file holds digests of the passwords.
"""

import hashlib
import sys
from pathlib import Path

from common.broker.acl import ROLES, rules
from common.broker.shared_server import read_password
from common.errors import ConfigError

SCALER = "scaler"  # of KEDA, which counts waiting trials


def main(folder: Path) -> None:
    """Print the ACL file. The user `scaler` is left out where it has no password."""
    # The default user is off, so nobody can log in as it. It has all rights because Redis replays
    # its append-only file as this user, and drops what it may not do.
    lines = ["user default off resetpass ~* &* +@all"]
    for user in (*ROLES, SCALER):
        file = folder / user
        if user == SCALER and not file.exists():
            continue
        digest = hashlib.sha256(read_password(file).encode()).hexdigest()
        lines.append(f"user {user} on #{digest} {rules(user)}")
    print("\n".join(lines))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except ConfigError as error:
        sys.exit(str(error))
