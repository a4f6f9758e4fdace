"""Holds a list of Kubernetes objects against the schemas of these versions: check.py FILE VERSION...

An object with a field that no schema has, and one with a field of another type, must be refused: else nothing was checked.
"""

import copy
import json
import sys

import kubernetes_validate

with open(sys.argv[1], encoding="utf-8") as file:
    items = json.load(file)["items"]
for version in sys.argv[2:]:
    for item in items:
        kubernetes_validate.validate(item, version, strict=True)
        for field, wrong in (("podFailurePolitics", {}), ("backoffLimit", "many")):
            broken = copy.deepcopy(item)
            broken["spec"][field] = wrong
            try:
                kubernetes_validate.validate(broken, version, strict=True)
            except kubernetes_validate.ValidationError:
                continue
            sys.exit(f"{item['metadata']['name']}: {field} = {wrong!r} was accepted")
        print(f"{item['kind']} {item['metadata']['name']}: valid in Kubernetes {version}")
