"""The stages in order. Each declares its outputs and what it depends on, and checks a recipe."""

from setbacks.stages import analyze, induce, introspect, judge, report, respond, train

STAGES = (
    induce.STAGE,
    analyze.STAGE,
    introspect.PREFLIGHT,
    train.STAGE,
    introspect.INTROSPECT,
    respond.STAGE,
    judge.STAGE,
    report.STAGE,
)
