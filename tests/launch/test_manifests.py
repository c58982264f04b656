"""The YAML files of launch/: fields that their readers know, and flags that the trainer knows."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.launch.scripts import LAUNCH, ROOT, parse

# Of KubeRay's API reference (ray.io/v1), what belongs to a RayJob; of Kubernetes' pods, what is used here.
RAY_JOB = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "rayClusterSpec",
    "submitterPodTemplate",
    "metadata",
    "clusterSelector",
    "submitterConfig",
    "managedBy",
    "deletionStrategy",
    "entrypoint",
    "runtimeEnvYAML",
    "jobId",
    "submissionMode",
    "entrypointResources",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "ttlSecondsAfterFinished",
    "shutdownAfterJobFinishes",
    "suspend",
    "schedule",
}
RAY_CLUSTER = {
    "suspend",
    "managedBy",
    "authOptions",
    "autoscalerOptions",
    "headServiceAnnotations",
    "enableInTreeAutoscaling",
    "gcsFaultToleranceOptions",
    "headGroupSpec",
    "rayVersion",
    "workerGroupSpecs",
}
HEAD_GROUP = {"template", "headService", "enableIngress", "rayStartParams", "serviceType"}
WORKER_GROUP = {
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "numOfHosts",
    "rayStartParams",
    "template",
    "scaleStrategy",
}
POD = {"containers", "volumes", "tolerations"}
CONTAINER = {"name", "image", "env", "ports", "resources", "volumeMounts"}


@pytest.fixture(scope="module")
def kuberay() -> dict[str, Any]:
    documents = yaml.safe_load_all((LAUNCH / "kuberay/rayjob.yaml").read_text())
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def cluster(kuberay) -> dict[str, Any]:
    return kuberay["RayJob"]["spec"]["rayClusterSpec"]


@pytest.fixture(scope="module")
def job_flags(kuberay, tmp_path_factory) -> Any:
    """The trainer's flags as the job gives them."""
    entrypoint = shlex.split(kuberay["RayJob"]["spec"]["entrypoint"])
    assert entrypoint == ["python", "-m", "minestudio_jax.train", "--flagfile=/etc/minestudio_jax/train.flags"]
    file = tmp_path_factory.mktemp("flags") / "train.flags"
    file.write_text(kuberay["ConfigMap"]["data"]["train.flags"].replace("/app/", f"{ROOT}/"))
    return parse([f"--flagfile={file}"])


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_a_rayjob_has_fields_that_kuberay_knows(kuberay, cluster):
    assert kuberay["RayJob"]["apiVersion"] == "ray.io/v1"
    assert set(kuberay["RayJob"]["spec"]) <= RAY_JOB
    assert set(cluster) <= RAY_CLUSTER
    assert set(cluster["headGroupSpec"]) <= HEAD_GROUP
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKER_GROUP
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for pod in pods(cluster):
        assert set(pod) <= POD
        for container in pod["containers"]:
            assert set(container) <= CONTAINER
            assert container["resources"]["limits"] == container["resources"]["requests"]
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()


def test_every_pod_sees_the_flags_the_shared_directory_and_enough_shared_memory(kuberay, cluster):
    for pod in pods(cluster):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts["/etc/minestudio_jax"]["configMap"]["name"] == kuberay["ConfigMap"]["metadata"]["name"]
        assert "persistentVolumeClaim" in mounts["/shared"]
        assert mounts["/dev/shm"]["emptyDir"] == {"medium": "Memory"}


def test_the_jobs_flags_fit_its_pods(cluster, job_flags):
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert job_flags["run.dir"].value.startswith("/shared/")
    assert job_flags["trainer.launcher"].value == "ray"
    assert job_flags["trainer.num_hosts"].value == groups["learner"]["replicas"]
    gpus = groups["learner"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert job_flags["trainer.host_resources"].value == {"GPU": int(gpus)}
    each = json.loads(json.loads(groups["rollout"]["rayStartParams"]["resources"]))["minecraft"]
    wanted = job_flags["rollout.resources"].value["minecraft"]
    assert wanted == job_flags["rollout.num_envs"].value
    assert wanted * job_flags["rollout.num_rollout_workers"].value <= each * groups["rollout"]["replicas"]
    cpus = int(groups["rollout"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert job_flags["rollout.num_cpus_per_worker"].value * (each // wanted) <= cpus


def test_the_cluster_launcher_takes_the_cluster():
    import ray

    launcher = yaml.safe_load((LAUNCH / "ray_cluster.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(launcher, schema)
    types = launcher["available_node_types"]
    assert launcher["head_node_type"] in types
    assert types["rollout"]["max_workers"] <= launcher["max_workers"]
    start = launcher["worker_start_ray_commands"][-1]
    assert f"'{json.dumps({'minecraft': types['rollout']['resources']['minecraft']})}'" in start
    for command in (start, launcher["head_start_ray_commands"][-1]):
        assert "RAY_AUTH_MODE=token" in command
