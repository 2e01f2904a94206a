import copy
import json

import pytest
import torch

from hyperiqa.base.device import cpu_model
from hyperiqa.base.errors import UserError
from hyperiqa.model.factory import new_model
from hyperiqa.training.precision import choose_precision, kept_speeds
from HyperIQASolver import HyperIQASolver


def test_a_measurement_changes_nothing_and_is_kept(settings):
    options = settings("resnet", "--no_spaq", "--dropout", 0.5, "--batch_size", 2)
    model = new_model(options).eval()
    before = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    speeds = kept_speeds(options, model, "some CPU")
    assert min(speeds.values()) > 0
    assert torch.equal(torch.get_rng_state(), generator) and not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    (path,) = options.cache_dir.glob("precision_*.json")
    kept = json.loads(path.read_text())
    assert (kept["cpu"], kept["backbone"], kept["patch_size"]) == ("some CPU", "resnet18", 64)
    assert kept["patches_per_second"] == speeds
    path.write_text('{"patches_per_second": {"fp32": 1, "bf16": 7.5}}')
    assert kept_speeds(options, model, "some CPU") == {"fp32": 1, "bf16": 7.5}
    # A damaged file is measured anew, and replaced.
    path.write_text('{"patches_per_second": {"fp32": 1')
    again = kept_speeds(options, model, "some CPU")
    assert json.loads(path.read_text())["patches_per_second"] == again
    assert list(options.cache_dir.glob("precision_*.json")) == [path]


def test_a_flag_is_not_measured(settings):
    cpu = torch.device("cpu")
    for name in ("fp32", "bf16"):
        options = settings("resnet", "--precision", name)
        assert choose_precision(options, cpu, None) == (name, "as asked for")
    if not cpu_model()[1]:
        automatic = settings("resnet", "--precision", "auto")
        assert choose_precision(automatic, cpu, None)[0] == "fp32"


@pytest.mark.skipif(not cpu_model()[1], reason="needs a CPU with instructions for bf16")
def test_auto_takes_the_faster_one_and_a_resumed_run_keeps_it(settings):
    """Its figures are, bit for bit, those of the precision that it has come to."""

    class Stops(HyperIQASolver):
        def begin_epoch(self, number):
            if number == 2:
                raise UserError("stopped")
            super().begin_epoch(number)

    def run(solver_class, *flags):
        solver = solver_class(settings("resnet", "--no_spaq", *flags))
        try:
            solver.run()
        except UserError as mistake:
            assert str(mistake) == "stopped"
        first, *others = map(json.loads, solver.log.path(".jsonl").read_text().splitlines())
        epochs = [record for record in others if record["type"] == "epoch"]
        for record in epochs:
            del record["seconds"]
        return solver, first, epochs

    auto = ("--precision", "auto", "--run_name", "auto")
    options = settings("resnet", "--no_spaq", *auto)
    model = new_model(options)
    kept_speeds(options, model, cpu_model()[0])
    (path,) = options.cache_dir.glob("precision_*.json")
    path.write_text('{"patches_per_second": {"fp32": 10, "bf16": 11}}')
    _, first, _ = run(Stops, *auto)
    measured = "measured 10 patches/s in fp32 and 11 in bf16"
    assert (first["precision"], first["precision_reason"]) == ("bf16", measured)
    # A gain of less than a tenth would not do.
    path.write_text('{"patches_per_second": {"fp32": 10, "bf16": 10.9}}')
    assert choose_precision(options, torch.device("cpu"), model)[0] == "fp32"
    resumed, _, epochs = run(HyperIQASolver, *auto, "--resume", "auto")
    log = resumed.log.path(".log").read_text()
    assert f"\nPrecision: training bf16 ({measured}), scoring fp32\n" in log
    assert log.count("\nResuming auto: round 1, epoch 1 done (") == 1
    asked, _, expected = run(HyperIQASolver, "--precision", "bf16", "--run_name", "asked")
    assert epochs == expected and len(epochs) == 2
    weights = asked.round.model.state_dict()
    found = resumed.round.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
