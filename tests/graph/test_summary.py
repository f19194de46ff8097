"""What differs between two graphs, in one line."""

from maxfdl import graph
from maxfdl.graph import summary


def test_fields_and_classes_that_differ_are_named_with_defaults_written_out():
    first = graph.resolve("experiments.llama2_smoke")
    second = graph.resolve(
        "experiments.llama2_smoke+mesh(data=8)+vocab_tiling(num_tiles=4)"
        "+stop_at_loss(loss=2.0)"
    )
    second.data.skip_bad = 3
    assert summary(first, second) == (
        "data.skip_bad 0 -> 3, loss.cross_entropy CrossEntropy -> TiledCrossEntropy,"
        " loss.cross_entropy.num_tiles = 4, mesh.data 1 -> 8, mesh.fsdp -1 -> 1,"
        " trainer.goal None -> LossGoal, trainer.goal.loss = 2.0,"
        " trainer.goal.every = 100"
    )
    assert "trainer.goal LossGoal -> None" in summary(second, first)


def test_a_default_that_is_written_down_is_no_difference():
    first = graph.resolve("experiments.llama2_smoke")
    second = graph.copy(first)
    second.trainer.eval_every = 0
    assert summary(first, second) == summary(second, first) == ""


def test_siblings_with_the_same_difference_are_named_together():
    first = graph.resolve("experiments.zoo_smoke(family=deepseek_v3)")
    second = graph.resolve("experiments.zoo_smoke(family=deepseek_v3)+remat(full)")
    assert summary(first, second) == (
        "model.decoder.stacks[0..1].remat 'none' -> 'full'"
    )
