"""What the losses of a training say about it: the advice must fit a training that diverged, and one that is slow."""

from ppe_lora.evaluation.loss_course import TRAIN_MORE, advice, loss_course, read_loss_course

RATE_TOO_HIGH = [0.42, 0.41, 7.64, *[5.5568] * 21]
"""Measured at a learning rate of 1000."""


def test_a_training_that_diverged_is_not_told_to_go_further():
    """At a learning rate of 1000 the advice was to raise it."""
    course = loss_course(RATE_TOO_HIGH, [1.7, 1.1, 403.4, *[0.0] * 21])
    assert advice(course) == (
        "The training loss was 0.415 at its start, 0.415 at its lowest and 5.56 at its end, with gradient norms up to "
        "403: training has diverged. Lower train.learning_rate, and begin again with `ppe-lora train RECIPE --fresh`."
    )


def test_a_loss_that_rises_again_has_diverged_though_it_ends_below_its_start():
    course = loss_course([3.0, 2.0, 1.0, 0.5, 0.3, 0.3, 0.3, 1.5, 1.8, 2.0])
    assert course.diverged
    assert "0.3 at its lowest and 2 at its end:" in advice(course)


def test_noise_is_no_divergence():
    """Near its floor a loss doubles from step to step."""
    assert not loss_course([2.0, 1.0, 0.1, 0.02, 0.05, 0.02, 0.03, 0.04, 0.02, 0.05]).diverged
    assert not loss_course([1.0, 1.1, 0.9, 1.0, 1.1, 0.95, 1.0, 1.05, 1.0, 1.1]).diverged


def test_a_training_that_still_learns_or_never_began_is_told_to_learn_more():
    falling = [3.0 * 0.9**step for step in range(40)]
    flat = [0.42, 0.41] * 20
    for losses in (falling, flat, [1.0, 0.9]):
        assert advice(loss_course(losses)) == TRAIN_MORE


def test_a_training_that_has_learned_all_it_can_is_told_so():
    course = loss_course([3.0, 2.0, 1.0, *[0.5] * 27])
    assert advice(course) == (
        "The training loss was 2 at its start, 0.5 at its lowest and 0.5 at its end, where it no longer falls: more "
        "epochs change little. Look at the texts in epochs/*/eval_predictions.jsonl; more rows or a larger "
        "student.lora.rank may help; evaluate.gate says what is accepted."
    )


def test_the_course_is_read_from_the_log(tmp_path):
    log = tmp_path / "train_log.csv"
    log.write_text("step,epoch,loss,learning_rate,grad_norm,seconds\n1,0.5,2.0,1,3.5,1\n2,1,1.5,1,,2\n3,2,1,1,inf,3\n")
    assert read_loss_course(log) is None
    log.write_text(log.read_text() + "4,2,0.5,1,7,4\n")
    assert read_loss_course(log) == (2.0, 0.5, 2.0, 0.5, 7.0)
