"""The examples for clusters, which `make lint` lints, ask for nothing that is not there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kubeflow.training import models
from kubernetes.client import models as core
from torch.distributed.run import get_args_parser

from mobilenets import tasks
from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.training.recipe import find_recipe

ROOT = Path(__file__).parents[1]
SLURM, KUBERNETES = (ROOT / "docs" / "examples" / name for name in ("slurm.sh", "pytorchjob.yaml"))


def slurm_command():
    """The words that `srun` starts, variables as they are."""
    script = SLURM.read_text().replace("\\\n", " ")
    found = re.search(r"srun .*?(torchrun .*?);", script)
    return shlex.split(found[1])


def job():
    return list(yaml.safe_load_all(KUBERNETES.read_text()))[1]


def container():
    (only,) = job()["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    return only


COMMANDS = {"slurm": slurm_command(), "kubernetes": container()["command"]}


# The operator's own models: a key that it does not know it would ignore, or refuse.
def test_the_operator_knows_every_key():
    claim, training = yaml.safe_load_all(KUBERNETES.read_text())
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    check(claim, "V1PersistentVolumeClaim")
    assert (training["apiVersion"], training["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    check(training, "KubeflowOrgV1PyTorchJob")
    assert set(training["spec"]["pytorchReplicaSpecs"]) == {"Worker"}
    with pytest.raises(AssertionError, match="minReplica"):
        check({"minReplica": 2}, "KubeflowOrgV1ElasticPolicy")


def check(value, kind, where=""):
    """That a value is of a model: known keys, values of their types, nothing missing that must be there."""
    if found := re.fullmatch(r"list\[(.+)\]", kind):
        assert isinstance(value, list), where
        for one in value:
            check(one, found[1], where)
    elif found := re.fullmatch(r"dict\(str, (.+)\)", kind):
        for key, one in value.items():
            check(one, found[1], f"{where}.{key}")
    elif kind in ("str", "int", "bool"):
        assert type(value).__name__ == kind, (where, value)
    elif kind != "object":
        model = getattr(models, kind, None) or getattr(core, kind)
        keys = {key: name for name, key in model.attribute_map.items()}
        assert value.keys() <= keys.keys(), (where, value.keys() - keys.keys())
        given = {keys[key]: one for key, one in value.items()}
        # Its own checks say what must be there, and which values there are.
        model(**given)
        for key, one in value.items():
            check(one, model.openapi_types[keys[key]], f"{where}.{key}")


def test_pods_claim_and_mount_what_is_there():
    claim, training = yaml.safe_load_all(KUBERNETES.read_text())
    pod = training["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert {mount["name"] for mount in container()["volumeMounts"]} == set(volumes)
    assert container()["name"] == "pytorch"
    assert training["spec"]["nprocPerNode"] == container()["resources"]["limits"]["nvidia.com/gpu"]
    policy = training["spec"]["elasticPolicy"]
    replicas = training["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"]
    assert policy["minReplicas"] <= replicas <= policy["maxReplicas"]


@pytest.mark.parametrize("name", COMMANDS)
def test_torchrun_and_train_have_these_options(name):
    program, *words = COMMANDS[name]
    assert program == "torchrun"
    given = get_args_parser().parse_args(words)
    assert given.module
    assert given.training_script == "mobilenets"
    verb, data, *options = given.training_script_args
    assert verb == "train"
    assert data
    known = subprocess.run(
        [sys.executable, "-m", "mobilenets", "train", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    asked = [word.partition("=")[0] for word in options if word.startswith("--")]
    assert "--restartable" in asked
    for option in asked:
        assert option in known.split(), option
    text = " ".join(options)
    model = re.search(r"--model[ =](\S+)", text)[1]
    assert str(MobileNetSpec.parse(model)) == model
    recipe = find_recipe(
        re.search(r"--recipe[ =](\S+)", text)[1], tasks.find("classification").recipes()
    )
    key, value = re.search(r"--set[ =](\w+)=(\S+)", text).groups()
    assert recipe.override({key: value}).batch_size >= 256
