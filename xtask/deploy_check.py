"""Holds what `deploy` writes against others' schemas, for `cargo xtask deploy-check`: `deploy_check.py PROGRAM CHECKPOINT SCRATCH`.
Exit codes: 0 all right, 1 not, 2 usage.
"""

import json
import pathlib
import subprocess
import sys

import kubernetes_validate
import yaml


def documents(folder):
    for path in sorted(pathlib.Path(folder).rglob("*.y*ml")):
        yield path, yaml.safe_load(path.read_text())


def validate(document, what):
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    print(f"{what}: as the schema of Kubernetes {kubernetes_validate.latest_version()} has it")


def main(arguments):
    if len(arguments) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    program, checkpoint, scratch = arguments
    bundle = f"{scratch}/bundle"
    subprocess.run([program, checkpoint, "-o", bundle], check=True)
    cluster, kserve, compose, systemd = (f"{scratch}/{host}" for host in ("k8s", "kserve", "compose", "systemd"))
    for folder in (cluster, kserve, compose, systemd):
        subprocess.run([program, "deploy", pathlib.Path(folder).name, bundle, "-o", folder], check=True)
    kinds = set()
    for path, document in documents(cluster):
        validate(document, path.name)
        kinds.add(document["kind"])
    assert kinds == {"Deployment", "Service", "HorizontalPodAutoscaler"}, kinds
    # A mistake must be seen.
    try:
        kubernetes_validate.validate({**document, "specs": {}}, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError:
        pass
    else:
        raise AssertionError("a field that there is not was accepted")
    for path, document in documents(kserve):
        predictor = document["spec"]["predictor"]
        assert document["apiVersion"] == "serving.kserve.io/v1beta1" and predictor["containers"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": document["metadata"]}
        validate({**pod, "spec": {"containers": predictor["containers"]}}, f"{path.name}, its container")
    found = dict(documents(compose))
    services = {name for path in found if path.name == "compose.yaml" for name in found[path]["services"]}
    assert services == {"serve", "prometheus", "grafana"}, services
    for path, document in found.items():
        if path.name == "compose.yaml":
            for service in document["services"].values():
                for volume in service.get("volumes", []):
                    source = path.parent / volume["source"]
                    assert volume["type"] == "volume" or source.exists() or volume["source"].startswith("/"), volume
    dashboard = json.loads((pathlib.Path(compose) / "grafana/dashboards/dpar.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) > 8
    print(f"compose: {len(services)} services, {len(ids)} panels")
    # The unit names the program where the package puts it; the one that was built is somewhere else.
    unit = pathlib.Path(systemd) / "dpar-export.service"
    unit.write_text(unit.read_text().replace("/usr/bin/dpar-export", program))
    words = ["systemd-analyze", "verify", "--man=no", str(unit)]
    verified = subprocess.run(words, capture_output=True, text=True)
    # Of a directive that there is not it warns only.
    assert verified.returncode == 0 and not verified.stderr, verified.stderr
    print("systemd-analyze finds no fault with the unit")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
