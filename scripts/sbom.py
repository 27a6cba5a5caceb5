#!/usr/bin/env python3
"""Writes the SBOM of the binary (CycloneDX, JSON): every crate that is linked, with version, licence and hash.

    scripts/sbom.py TRIPLE OUTPUT

What is linked, cargo says (`cargo metadata`); the format is the work of cyclonedx-python-lib, which scripts/parts.sh installs.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot5
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL


def main() -> int:
    triple, output = sys.argv[1:]
    asked = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", triple]
    metadata = json.loads(subprocess.run(asked, check=True, stdout=subprocess.PIPE).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = next(id for id, package in packages.items() if package["name"] == "sower" and not package["source"])

    # What is only built with, or tested with, is not in the binary.
    def linked(id: str) -> list[str]:
        return [dep["pkg"] for dep in nodes[id]["deps"] if any(kind["kind"] is None for kind in dep["dep_kinds"])]

    found, waiting = set(), [root]
    while waiting:
        id = waiting.pop()
        if id not in found:
            found.add(id)
            waiting.extend(linked(id))

    entry = r'name = "([^"]+)"\nversion = "([^"]+)"\nsource = "[^"]+"\nchecksum = "([0-9a-f]{64})"'
    lock = Path("Cargo.lock").read_text()
    checksums = {(name, version): checksum for name, version, checksum in re.findall(entry, lock)}

    licences = LicenseFactory()
    components = {}
    for id in sorted(found):
        package = packages[id]
        name, version = package["name"], package["version"]
        purl = PackageURL("cargo", None, name, version)
        component = Component(
            type=ComponentType.APPLICATION if id == root else ComponentType.LIBRARY,
            name=name,
            version=version,
            bom_ref=str(purl),
            purl=purl,
            description=package["description"],
        )
        if package["license"]:
            component.licenses.add(licences.make_from_string(package["license"].replace("/", " OR ")))
        if checksum := checksums.get((name, version)):
            component.hashes.add(HashType(alg=HashAlgorithm.SHA_256, content=checksum))
        if package["repository"]:
            reference = ExternalReference(type=ExternalReferenceType.VCS, url=XsUri(package["repository"]))
            component.external_references.add(reference)
        components[id] = component

    bom = Bom()
    bom.metadata.component = components[root]
    for id, component in components.items():
        if id != root:
            bom.components.add(component)
    for id in found:
        bom.register_dependency(components[id], [components[dep] for dep in linked(id)])
    text = JsonV1Dot5(bom).output_as_string(indent=2)
    wrong = JsonStrictValidator(SchemaVersion.V1_5).validate_str(text)
    if wrong:
        print(f"sbom: {wrong}", file=sys.stderr)
        return 1
    Path(output).write_text(text + "\n")
    print(f"sbom: {len(components)} components")
    return 0


if __name__ == "__main__":
    sys.exit(main())
