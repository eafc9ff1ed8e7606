"""The bill of materials of an image, as SPDX 2.3 in JSON. It depends on the image alone, so it has a digest, too."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from sandfork.images.manifest import Package
from sandfork.images.naming import hex_of

_NO_ID = re.compile(r"[^A-Za-z0-9.-]")
_BESIDE = ("npm", "pypi")
"""What stands for the architecture of packages that are not the distribution's, and for their type in a package URL."""


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
                "checksums": [{"algorithm": "SHA256", "checksumValue": hex_of(digest)}],
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


def _package(number: int, package: Package, distribution: str) -> dict[str, object]:
    name = package.name.replace("@", "%40")
    purl = (
        f"pkg:{package.architecture}/{name}@{package.version}"
        if package.architecture in _BESIDE
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
