"""What a run asks of SLURM, which GPUs it then takes, and what is told of a job that ended."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from fake_nvml import Clock, FakeDriver, FakeGpu, constant

from edge_eval_lib import paths
from edge_eval_lib.artefacts.place import place, read_failure
from edge_eval_lib.errors import UserError
from edge_eval_lib.runs import devices, slurm

T4_NODES = "gpu* 16 128000 gpu:t4:4(S:0-1)\ngpu* 8 64000 gpu:t4:2\n"
OUTPUT = "settings/serve/a_rag_lora_int4_r01.json"


@pytest.fixture(autouse=True)
def _outside_slurm(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "SBATCH_", "CUDA_")):
            monkeypatch.delenv(name)


def gpus(monkeypatch, count):
    clock = Clock()
    FakeDriver([FakeGpu(constant(50.0)) for _ in range(count)], clock).install(monkeypatch)


def selected():
    return [environment["CUDA_VISIBLE_DEVICES"] for environment in devices.devices().values()]


# --- which GPUs a run takes ------------------------------------------------------------------


def test_outside_slurm_every_gpu_can_be_taken(monkeypatch):
    gpus(monkeypatch, 3)
    assert selected() == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS"])
def test_a_slurm_job_takes_nothing_beyond_its_allocation(monkeypatch, name):
    gpus(monkeypatch, 4)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv(name, "1,3")
    assert selected() == ["1", "3"]


def test_cuda_visible_devices_counts_where_slurm_hides_the_other_gpus(monkeypatch):
    """SLURM then numbers what is left from 0, and SLURM_JOB_GPUS tells the node's number."""
    gpus(monkeypatch, 1)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_GPUS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert selected() == ["0"]


def test_a_slurm_job_without_a_gpu_takes_none(monkeypatch):
    gpus(monkeypatch, 2)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(UserError, match="none of the 2 GPUs of its node; submit it with --gpus=1"):
        devices.devices()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.devices() == {"machine": {}}


def test_a_gpu_has_one_lock_whatever_its_number_is(monkeypatch):
    gpus(monkeypatch, 4)
    outside = list(devices.devices())
    assert len(set(outside)) == 4
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert list(devices.devices()) == outside[3:]


def test_locks_lie_on_the_node_although_a_job_inherits_another_machines_directory(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/of-the-login-node")
    monkeypatch.setattr(paths.tempfile, "gettempdir", lambda: str(tmp_path))
    assert paths.user_directory().parent == tmp_path


# --- what a run asks for ---------------------------------------------------------------------


def test_a_run_asks_for_a_gpu_and_the_smallest_share_of_a_node():
    assert slurm.wanted(1, T4_NODES) == ["--gpus=1", "--cpus-per-gpu=4", "--mem-per-gpu=32000M"]


def test_a_model_spread_over_two_gpus_has_both_on_one_node():
    assert slurm.wanted(2, T4_NODES)[0] == "--gpus=2"


def test_a_page_that_needs_no_gpu_asks_nodes_of_gpus_for_one():
    assert slurm.wanted(0, T4_NODES) == slurm.wanted(1, T4_NODES)


def test_gpus_of_every_type_of_a_node_share_it():
    node = "all* 48 480000 gpu:a100:4(S:0),gpu:t4:2,shard:t4:8"
    assert slurm.wanted(1, node) == ["--gpus=1", "--cpus-per-gpu=8", "--mem-per-gpu=80000M"]


def test_a_run_has_a_node_to_itself_where_slurm_manages_no_gpu():
    assert slurm.wanted(1, "cpu* 64 256000 (null)\n") == ["--exclusive", "--mem=0"]


def test_memory_that_slurm_does_not_know_of_is_not_asked_for():
    assert slurm.wanted(1, "gpu* 2 1 gpu:1") == ["--gpus=1", "--cpus-per-gpu=2"]


def test_only_nodes_of_the_partition_count(monkeypatch):
    nodes = "cpu* 64 256000 (null)\n" + T4_NODES.replace("*", "")
    assert slurm.wanted(1, nodes) == ["--exclusive", "--mem=0"]
    monkeypatch.setenv("SBATCH_PARTITION", "gpu")
    assert slurm.wanted(1, nodes)[0] == "--gpus=1"


# --- what is told of a job -------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch, tmp_path):
    """Have a command of SLURM answer what a test says."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path / "outputs")
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    monkeypatch.setattr(slurm, "SEEN_WITHIN_S", 0.0)

    def answer(command: str, output: str = "", error: str = "", code: int = 0) -> None:
        script = commands / command
        script.write_text(
            f"#!/bin/sh\ncat <<'EOF'\n{output}\nEOF\ncat >&2 <<'EOF'\n{error}\nEOF\nexit {code}\n"
        )
        script.chmod(0o755)

    return answer


def job(state: str, node: str = "n7") -> str:
    return (
        f"JobId=12 JobName=edge-eval/abc/serve/a_rag_lora_int4_r01 UserId=me(1) JobState={state} "
        f"ReqNodeList=(null) ExcNodeList=(null) NodeList={node} BatchHost=n7"
    )


def logged() -> None:
    log = Path("slurm/serve/a_rag_lora_int4_r01.log")
    log.parent.mkdir(parents=True)
    log.touch()


def failure() -> dict:
    return json.loads(Path("failed/serve/a_rag_lora_int4_r01.json").read_bytes())


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"])
def test_a_job_on_its_way_is_running(told, state):
    told("scontrol", job(state))
    assert slurm.status("12") == "running"


def test_a_job_that_ended_well_is_a_success(told):
    logged()
    told("scontrol", job("COMPLETED"))
    assert slurm.status("12") == "success"
    assert not Path("failed").exists()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("CANCELLED", "was cancelled on n7"),
        ("NODE_FAIL", "was lost with its node on n7"),
        ("OUT_OF_MEMORY", "ran out of memory on n7"),
        ("TIMEOUT", "reached its time limit on n7"),
    ],
)
def test_a_job_that_could_not_say_why_it_ended_leaves_the_reason(told, state, words):
    logged()
    told("scontrol", job(state))
    assert slurm.status("12") == "failed"
    assert failure()["reason"].startswith(f"SLURM's job 12 {words} (see ")


def test_what_the_run_itself_says_of_its_failure_stands(told):
    logged()
    Path("failed/serve").mkdir(parents=True)
    said = {"stage": "serve", "name": "a_rag_lora_int4_r01", "reason": "The text is empty."}
    Path("failed/serve/a_rag_lora_int4_r01.json").write_text(json.dumps(said))
    told("scontrol", job("FAILED"))
    assert slurm.status("12") == "failed"
    assert failure() == said


def test_a_job_cancelled_before_it_started_blames_no_file_system(told):
    Path("slurm/serve").mkdir(parents=True)
    told("scontrol", job("CANCELLED", node="(null)"))
    assert slurm.status("12") == "failed"
    assert failure()["reason"] == "SLURM's job 12 was cancelled."


def test_why_the_papers_report_failed_stands_where_it_is_looked_for(told, monkeypatch):
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(Path.cwd().parent))
    told(
        "scontrol",
        job("CANCELLED", node="(null)").replace("serve/a_rag_lora_int4_r01", "paper/paper"),
    )
    assert slurm.status("12") == "failed"
    why = read_failure(place(None, "paper", "paper"))
    assert why["reason"] == "SLURM's job 12 was cancelled."


@pytest.mark.parametrize("state", ["FAILED", "COMPLETED"])
def test_a_node_that_does_not_share_the_outputs_is_named(told, state):
    Path("slurm/serve").mkdir(parents=True)
    told("scontrol", job(state))
    assert slurm.status("12") == "failed"
    assert failure()["reason"].startswith(f"n7 does not share {Path.cwd()} with ")


def test_a_forgotten_job_is_judged_by_its_output_and_silence_is_waited_for(told):
    told("scontrol", error="slurm_load_jobs error: Invalid job id specified", code=1)
    assert slurm.status("12") == "success"
    told("scontrol", error="slurm_load_jobs error: Unable to contact slurm controller", code=1)
    assert slurm.status("12") == "running"


def test_a_submission_replaces_what_is_left_of_an_earlier_attempt(told):
    logged()
    Path("failed/serve").mkdir(parents=True)
    Path("failed/serve/a_rag_lora_int4_r01.json").write_text("{}")
    told("sinfo", T4_NODES)
    told("scancel")
    told("sbatch", "12;cluster")
    assert slurm.submit(1, OUTPUT, ["--qos=long"], "job.sh") == "12"
    assert not Path("slurm/serve/a_rag_lora_int4_r01.log").exists()
    assert not Path("failed/serve/a_rag_lora_int4_r01.json").exists()


def test_a_refused_submission_leaves_slurms_words(told, capsys):
    told("sinfo", T4_NODES)
    told("scancel")
    told("sbatch", error="sbatch: error: invalid partition specified: gup", code=1)
    with pytest.raises(SystemExit):
        slurm.main(["submit", "1", OUTPUT, "job.sh"])
    assert "invalid partition specified: gup" in failure()["reason"]
    assert capsys.readouterr().out == ""


def test_a_machine_without_slurm_is_reported(told, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        slurm.submit(1, OUTPUT, [], "job.sh")
    assert "this machine has no scancel" in caught.value.stderr
