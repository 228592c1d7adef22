"""The learning rate of a step and the evaluations after an epoch, with the figures of the paper."""
import pytest

from training.schedule import LearningRate, attack_iters_after, steps_in_epoch


def at_epoch(schedule, epoch):
    """The rate after a number of epochs, which may be a fraction."""
    return schedule.at(int(round(epoch * schedule.steps_per_epoch)))


@pytest.mark.parametrize('total_batch, peak', [
    (256, 0.1), (4096, 1.6), (512, 0.2), (128, 0.05), (32, 0.0125), (1, 0.1 / 256)])
def test_rate_is_a_tenth_per_256_images(total_batch, peak):
    schedule = LearningRate(0.1, total_batch, steps_per_epoch=100)
    assert at_epoch(schedule, 5) == at_epoch(schedule, 20) == pytest.approx(peak)


def test_base_rate_scales_it():
    assert at_epoch(LearningRate(0.02, 64, 10), 10) == pytest.approx(0.005)


def test_warm_up_from_a_tenth_over_five_epochs():
    schedule = LearningRate(0.1, 4096, steps_per_epoch=312)
    assert schedule.at(0) == pytest.approx(0.1)
    for epoch, rate in [(1, 0.4), (2, 0.7), (2.5, 0.85), (4, 1.3), (5, 1.6), (6, 1.6)]:
        assert at_epoch(schedule, epoch) == pytest.approx(rate), epoch
    rates = [schedule.at(step) for step in range(5 * 312 + 1)]
    steps = [b - a for a, b in zip(rates, rates[1:])]
    assert min(steps) == pytest.approx(max(steps)) == pytest.approx(1.5 / (5 * 312)), 'a straight line'


@pytest.mark.parametrize('total_batch', [256, 32])
def test_no_warm_up_at_a_tenth_and_below(total_batch):
    schedule = LearningRate(0.1, total_batch, steps_per_epoch=50)
    assert {schedule.at(step) for step in range(35 * 50)} == {schedule.peak}


@pytest.mark.parametrize('total_batch', [8, 256, 4096])
@pytest.mark.parametrize('steps_per_epoch', [1, 7, 312, 40036])
def test_divided_by_ten_after_35_70_and_95_epochs(steps_per_epoch, total_batch):
    schedule = LearningRate(0.1, total_batch, steps_per_epoch)
    peak = 0.1 * total_batch / 256
    for epoch, rate in [(35, peak), (70, peak / 10), (95, peak / 100), (110, peak / 1000)]:
        assert schedule.at(epoch * steps_per_epoch - 1) == pytest.approx(rate), 'the last step of epoch %d' % epoch
    for epoch, rate in [(35, peak / 10), (70, peak / 100), (95, peak / 1000)]:
        assert schedule.at(epoch * steps_per_epoch) == pytest.approx(rate), 'the first step after epoch %d' % epoch
    assert schedule.at(110 * steps_per_epoch) > 0


def test_shorter_trainings_scale_milestones_and_warm_up():
    schedule = LearningRate(0.1, 512, steps_per_epoch=10, max_epoch=22)
    # a fifth of 110: warm-up over 1 epoch, milestones after 7, 14 and 19
    for step, rate in [(0, 0.1), (5, 0.15), (10, 0.2), (69, 0.2), (70, 0.02), (139, 0.02), (140, 2e-3), (189, 2e-3),
                       (190, 2e-4), (219, 2e-4)]:
        assert schedule.at(step) == pytest.approx(rate), step


@pytest.mark.parametrize('images, total_batch, steps', [
    (1281167, 4096, 313), (1281167, 256, 5005), (1281167, 8192, 156), (40, 8, 5), (40, 16, 2), (47, 10, 5), (44, 10, 4),
    (5, 8, 1), (3, 8, 1), (1, 32768, 1)])
def test_an_epoch_is_one_pass_to_the_nearest_step(images, total_batch, steps):
    assert steps_in_epoch(images, total_batch) == steps


def test_one_epoch_has_the_whole_schedule():
    schedule = LearningRate(0.1, 256, steps_per_epoch=1100, max_epoch=1)
    assert [schedule.at(step) for step in (0, 349, 350, 700, 950)] == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.0001])


def test_evaluations_of_the_paper():
    every_strength = [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    for epoch in range(1, 111):
        expected = {0, 10}
        if epoch in (20, 40, 60, 80, 100):
            expected.add(50)
        if epoch in (10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 106, 107, 108, 109, 110):
            expected.add(100)
        if epoch in (109, 110):
            expected.update(every_strength)
        iters = attack_iters_after(epoch, 110)
        assert iters == sorted(expected), epoch


@pytest.mark.parametrize('max_epoch', [1, 2, 3, 7])
def test_short_trainings_end_with_every_strength(max_epoch):
    iters = {epoch: attack_iters_after(epoch, max_epoch) for epoch in range(1, max_epoch + 1)}
    assert iters[max_epoch] == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    assert iters.get(max_epoch - 2, [0, 10, 100]) == [0, 10, 100]
    assert iters.get(max_epoch - 5, [0, 10]) == [0, 10]


@pytest.mark.parametrize('total_batch', [128, 512])
@pytest.mark.parametrize('epochs', [5, 30])
def test_cyclic_rises_for_two_fifths_and_falls_to_0(total_batch, epochs):
    schedule = LearningRate(0.1, total_batch, 100, epochs, 'cyclic')
    peak = 0.1 * total_batch / 256
    for part, of_peak in [(0, 0), (0.1, 1 / 4), (0.2, 1 / 2), (0.4, 1), (0.7, 1 / 2), (0.85, 1 / 4), (1, 0)]:
        assert at_epoch(schedule, part * epochs) == pytest.approx(of_peak * peak, abs=1e-12), part


def test_cosine_follows_the_published_warm_up():
    schedule, published = LearningRate(0.1, 4096, 20, 110, 'cosine'), LearningRate(0.1, 4096, 20)
    for step in range(0, 5 * 20, 7):
        assert schedule.at(step) == published.at(step)
    for epoch, rate in [(5, 1.6), (40, 1.2), (57.5, 0.8), (75, 0.4), (110, 0)]:
        assert at_epoch(schedule, epoch) == pytest.approx(rate, abs=1e-12)


def test_cosine_without_a_warm_up_begins_at_the_peak():
    schedule = LearningRate(0.1, 256, 10, 30, 'cosine')
    for epoch, rate in [(0, 0.1), (10, 0.075), (15, 0.05), (30, 0)]:
        assert at_epoch(schedule, epoch) == pytest.approx(rate, abs=1e-12)
