"""The bill of materials of an image, as SPDX 2.3 in JSON. It depends on the image alone, so it has a digest, too."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import msgspec

from sandfork.images.manifest import Package

_NO_ID = re.compile(r"[^A-Za-z0-9.-]")
_PURL_TYPES = {"npm": "npm", "pypi": "pypi"}


def spdx(name: str, digest: str, distribution: str, created: str, packages: Sequence[Package]) -> bytes:
    """Return the document of an image; `distribution` is such as debian, `created` in RFC 3339."""
    described = [_package(number, package, distribution) for number, package in enumerate(packages)]
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"urn:sandfork:image:{digest}",
        "creationInfo": {"created": created, "creators": ["Tool: sandfork"]},
        "packages": [
            {
                "SPDXID": "SPDXRef-Image",
                "name": name,
                "downloadLocation": "NOASSERTION",
                "filesAnalyzed": False,
                "checksums": [{"algorithm": "SHA256", "checksumValue": digest.removeprefix("sha256:")}],
            },
            *described,
        ],
        "relationships": [
            {
                "spdxElementId": "SPDXRef-DOCUMENT",
                "relationshipType": "DESCRIBES",
                "relatedSpdxElement": "SPDXRef-Image",
            },
            *(
                {"spdxElementId": "SPDXRef-Image", "relationshipType": "CONTAINS", "relatedSpdxElement": each["SPDXID"]}
                for each in described
            ),
        ],
    }
    return msgspec.json.encode(document)


def digest_of(document: bytes) -> str:
    """Return what a manifest calls a document by."""
    return f"sha256:{hashlib.sha256(document).hexdigest()}"


def _package(number: int, package: Package, distribution: str) -> dict[str, object]:
    kind = _PURL_TYPES.get(package.architecture)
    name = package.name.replace("@", "%40")
    purl = (
        f"pkg:{kind}/{name}@{package.version}"
        if kind
        else f"pkg:deb/{distribution}/{name}@{package.version}?arch={package.architecture}"
    )
    return {
        "SPDXID": f"SPDXRef-{number}-{_NO_ID.sub('-', package.name)}",
        "name": package.name,
        "versionInfo": package.version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": purl.replace("+", "%2B"),
            }
        ],
    }
