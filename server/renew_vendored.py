"""Renews the page's JavaScript libraries from npm: `python server/renew_vendored.py`.

They lie in `lorry/ui/vendor`, so that neither an installation nor the page ever asks npm for
anything. `versions.json` there says what is taken: each package's version, its licence, npm's own
hash of the archive (`npm view preact@11.2.0 dist.integrity`), and the files. To renew one, write
its new version and hash there and run this. It refuses an archive with another hash, and writes the
SHA-256 of every file, which a test compares.

A browser cannot resolve `from "preact"` without an import map, which would have to stand inline in
the page. So the script writes the path of the file in its place. It also removes the names of
source maps, which are not there. It changes nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "lorry" / "ui" / "vendor"
VERSIONS = FOLDER / "versions.json"

_SPECIFIERS = {
    "preact": "./preact.js",
    "preact/hooks": "./hooks.js",
    "@preact/signals-core": "./signals-core.js",
}


def main() -> None:
    packages = json.loads(VERSIONS.read_text())
    archives = [_fetched(package) for package in packages]
    for path in FOLDER.iterdir():
        if path != VERSIONS:
            path.unlink()
    for package, archive in zip(packages, archives, strict=True):
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            for name, file in package["files"].items():
                member = tar.extractfile(f"package/{file['path']}")
                assert member is not None
                content = _resolved(member.read()) if name.endswith(".js") else member.read()
                (FOLDER / name).write_bytes(content)
                file["sha256"] = hashlib.sha256(content).hexdigest()
    VERSIONS.write_text(json.dumps(packages, indent=2) + "\n")


def _fetched(package: dict[str, Any]) -> bytes:
    """Return npm's archive, checked."""
    name = f"{package['package']}@{package['version']}"
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", name]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        content = archive.read_bytes()
    found = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != package["integrity"]:
        raise SystemExit(f"{name}: the archive is {found}, not {package['integrity']}")
    return content


def _resolved(text: bytes) -> bytes:
    for name, path in _SPECIFIERS.items():
        text = re.sub(rf'(\bfrom\s*)"{re.escape(name)}"'.encode(), rf'\1"{path}"'.encode(), text)
    return re.sub(rb"\n?//# sourceMappingURL=\S+\s*$", b"\n", text)


if __name__ == "__main__":
    main()
