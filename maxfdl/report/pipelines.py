"""What runs as a pipeline, and what does not."""

import fiddle as fdl

from maxfdl import graph
from maxfdl.layers.pipeline import Pipeline


def pipelines_of(config: fdl.Buildable) -> list[str]:
    """Returns a sentence for each stack of the graph's model that is a pipeline."""
    found = []
    for path, node in graph.iterate(config.model):
        if "execution" not in node.__arguments__:
            continue
        execution = graph.build(node.execution)
        if isinstance(execution, Pipeline):
            found.append(_sentence(path, node.repeats, execution))
    return found


def _sentence(path: str, repeats: int, pipeline: Pipeline) -> str:
    rest, schedule = pipeline.rest(repeats), pipeline.schedule
    stages = f"{pipeline.stages} stages"
    if pipeline.repeats > 1:
        stages += f" that take {pipeline.repeats} turns"
    before = f", {rest} run before it" if rest else ""
    held = "; weights are gathered once a step" if pipeline.hold_weights else ""
    return (
        f"{path}: {repeats - rest} of {repeats} repeats in {stages}"
        f"{before}; a stage has nothing to do in {pipeline.stages - 1} of"
        f" {schedule.iterations} iterations ({schedule.bubble:.1%}){held}"
    )
