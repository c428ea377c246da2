"""The stages in order. Each declares its outputs and what it depends on, and checks a recipe."""

from setbacks.stages import analyze, induce, introspect, judge, preflight, report, respond, train

STAGES = (
    induce.STAGE,
    analyze.STAGE,
    preflight.STAGE,
    train.STAGE,
    introspect.STAGE,
    respond.STAGE,
    judge.STAGE,
    report.STAGE,
)
