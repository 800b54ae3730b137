"""The Kubernetes manifests: valid by every schema that governs them, and in step with the code and the image."""

import copy
import importlib
import inspect
import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from referencing import Registry, Resource

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "infra" / "kubernetes"
KUBERNETES = "1.34"
Document = dict[str, Any]


def read_documents() -> dict[str, Document]:
    """Every document of every manifest, by its kind."""
    found = [d for path in sorted(FOLDER.glob("*.yaml")) for d in yaml.safe_load_all(path.read_text())]
    documents = {document["kind"]: document for document in found}
    assert len(documents) == len(found)
    return documents


DOCUMENTS = read_documents()
RAY_KINDS = ("RayCluster", "RayService")


def test_these_are_all_manifests() -> None:
    assert set(DOCUMENTS) == {"ConfigMap", "PersistentVolumeClaim", "Secret", *RAY_KINDS}


def cluster_of(document: Document) -> Document:
    spec: Document = document["spec"]
    return spec.get("rayClusterConfig", spec)


def templates_of(document: Document) -> list[Document]:
    cluster = cluster_of(document)
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def autoscaler_pod(options: Document) -> Document:
    """The operator's autoscaler container, with the parts of it that a RayCluster sets."""
    container = {"name": "autoscaler", "resources": options["resources"], "securityContext": options["securityContext"]}
    return {"spec": {"containers": [container]}}


def kubernetes_objects(document: Document) -> Iterator[Document]:
    """What of a document Kubernetes' own schemas describe: all of it, or the Pods of a Ray kind."""
    if document["kind"] not in RAY_KINDS:
        yield document
        return
    templates = templates_of(document)
    if options := cluster_of(document).get("autoscalerOptions"):
        templates.append(autoscaler_pod(options))
    for template in templates:
        yield {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "checked"}, "template": template}


def ray_schema(kind: str) -> jsonschema.Draft202012Validator:
    schemas = {path.name: json.loads(path.read_text()) for path in FOLDER.glob("schemas/*.json")}
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    resources = Registry().with_resources((name, Resource.from_contents(schema)) for name, schema in schemas.items())
    return jsonschema.Draft202012Validator(schemas[f"{kind.lower()}.json"], registry=resources)


def validate(document: Document) -> None:
    """Raise jsonschema's ValidationError unless every schema accepts the document."""
    if document["kind"] in RAY_KINDS:
        ray_schema(document["kind"]).validate(document)
    for described in kubernetes_objects(document):
        kubernetes_validate.validate(described, KUBERNETES, strict=True)


@pytest.mark.parametrize("kind", sorted(DOCUMENTS))
def test_it_is_valid(kind: str) -> None:
    validate(DOCUMENTS[kind])


def first_container(document: Document, group: int) -> Document:
    container: Document = templates_of(document)[group]["spec"]["containers"][0]
    return container


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("RayService", lambda d: d["spec"].update(serveConfig=d["spec"].pop("serveConfigV2"))),
        ("RayService", lambda d: d["metadata"].update(label={})),
        ("RayService", lambda d: cluster_of(d).update(workerGroupSpec=[])),
        ("RayService", lambda d: cluster_of(d)["workerGroupSpecs"][0].update(minReplica=1)),
        ("RayService", lambda d: cluster_of(d)["workerGroupSpecs"][0].update(replicas="1")),
        ("RayService", lambda d: cluster_of(d)["headGroupSpec"].update(rayStartParams={"num-cpus": 0})),
        ("RayService", lambda d: cluster_of(d).update(rayVersion=2.6)),
        ("RayService", lambda d: cluster_of(d)["authOptions"].update(mode="tokens")),
        ("RayService", lambda d: first_container(d, 1).update(imagePullPolcy="Always")),
        ("RayCluster", lambda d: first_container(d, 0)["ports"][0].update(containerPort="6379")),
        ("RayCluster", lambda d: first_container(d, 1)["envFrom"][0].update(configMap={"name": "x"})),
        ("RayCluster", lambda d: first_container(d, 1)["resources"].update(limit={})),
        ("RayCluster", lambda d: cluster_of(d)["autoscalerOptions"].update(idleTimeoutSeconds="300")),
        ("RayCluster", lambda d: cluster_of(d)["autoscalerOptions"]["securityContext"].update(privilege=True)),
        ("RayCluster", lambda d: d.update(apiVersion="ray.io/v1alpha1")),
        ("ConfigMap", lambda d: d["data"].update(SWAPMEET_MAX_BATCH=32)),
        ("Secret", lambda d: d.update(data=d.pop("stringData") | {"AWS_PROFILE": 1})),
        ("PersistentVolumeClaim", lambda d: d["spec"].update(accessMode="ReadWriteMany")),
    ],
)
def test_a_misspelt_field_or_a_wrong_type_is_caught(kind: str, spoil: Callable[[Document], None]) -> None:
    spoilt = copy.deepcopy(DOCUMENTS[kind])
    spoil(spoilt)
    with pytest.raises(jsonschema.ValidationError):
        validate(spoilt)


def ray_version() -> str:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line.split("#")[0].strip()]
    (version,) = [str(pin.specifier).removeprefix("==") for pin in pins if pin.name == "ray"]
    return version


@pytest.mark.parametrize("kind", RAY_KINDS)
def test_versions_are_those_that_are_built_and_tested(kind: str) -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    document = DOCUMENTS[kind]
    assert cluster_of(document)["rayVersion"] == ray_version()
    images = {c["image"] for template in templates_of(document) for c in template["spec"]["containers"]}
    assert images == {f"swapmeet:{version}"}


@pytest.mark.parametrize("kind", sorted(DOCUMENTS))
def test_labels_are_those_that_kubernetes_recommends(kind: str) -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    document = DOCUMENTS[kind]
    labelled = [document, *(templates_of(document) if kind in RAY_KINDS else [])]
    for labels in (thing["metadata"]["labels"] for thing in labelled):
        assert set(labels) == {f"app.kubernetes.io/{key}" for key in ("name", "part-of", "component", "version")}
        assert labels["app.kubernetes.io/version"] == version


@pytest.mark.parametrize("kind", RAY_KINDS)
def test_pods_are_confined_probed_and_sized(kind: str) -> None:
    home = DockerfileParser(path=str(REPOSITORY / "infra/container/Dockerfile")).envs["SWAPMEET_HOME"]
    for template in templates_of(DOCUMENTS[kind]):
        spec, (container,) = template["spec"], template["spec"]["containers"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["enableServiceLinks"] is False
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {"livenessProbe", "readinessProbe"} <= set(container)
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == [home]
    assert cluster_of(DOCUMENTS[kind])["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("kind", RAY_KINDS)
def test_work_is_done_on_gpus_and_not_on_the_head(kind: str) -> None:
    head, *workers = templates_of(DOCUMENTS[kind])
    assert cluster_of(DOCUMENTS[kind])["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in head["spec"]["containers"][0]["resources"]["limits"]
    assert workers
    for worker in workers:
        assert worker["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("kind", RAY_KINDS)
def test_what_a_pod_refers_to_is_here(kind: str) -> None:
    names = {name: DOCUMENTS[name]["metadata"]["name"] for name in ("ConfigMap", "Secret", "PersistentVolumeClaim")}
    for template in templates_of(DOCUMENTS[kind]):
        (container,), (volume,) = template["spec"]["containers"], template["spec"]["volumes"]
        settings, secrets = container["envFrom"]
        assert settings == {"configMapRef": {"name": names["ConfigMap"]}}
        assert secrets == {"secretRef": {"name": names["Secret"]}}
        assert volume["persistentVolumeClaim"] == {"claimName": names["PersistentVolumeClaim"]}
        assert container["volumeMounts"][0]["name"] == volume["name"]


def test_settings_are_settings_of_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy import make_url

    from swapmeet.cluster import SERVE
    from swapmeet.settings import load_settings

    for name, value in (DOCUMENTS["ConfigMap"]["data"] | DOCUMENTS["Secret"]["stringData"]).items():
        assert name.startswith(("SWAPMEET_", "AWS_")) or SERVE[name] == value
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.registry_url.startswith("s3://")
    database = make_url(settings.database_url)
    assert (database.get_backend_name(), database.get_driver_name()) == ("postgresql", "psycopg")


def test_the_serve_configuration_is_one_of_ray_serve_and_its_application_exists() -> None:
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

    config = yaml.safe_load(DOCUMENTS["RayService"]["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    assert set(config) <= set(ServeDeploySchema.model_fields)  # unknown keys are ignored by Ray
    assert set(application) <= set(ServeApplicationSchema.model_fields)
    module, _, name = application["import_path"].partition(":")
    builder = getattr(importlib.import_module(module), name)
    assert len(inspect.signature(builder).parameters) == 1
