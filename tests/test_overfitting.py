"""The guard against catastrophic overfitting: what it finds, and what a training that is continued knows of before."""
import json
from types import SimpleNamespace

import pytest

from training import overfitting
from training.overfitting import FOUND, ONE_STEP, RESTORED_DISTANCE, RESTORES, SEVERAL, earlier_measurement


def record(step, one, several, found):
    return {'global_step': step, 'epoch_num': step // 100, ONE_STEP: one, SEVERAL: several, FOUND: float(found)}


GOOD, BAD = record(400, 0.4, 0.5, False), record(500, 0.2, 0.9, True)
WENT_BACK = [dict(BAD, **{RESTORES: 1, RESTORED_DISTANCE: 0.2}),
             dict(record(600, 0.2, 0.9, True), **{RESTORES: 2, RESTORED_DISTANCE: 0.3})]
CUT_OFF = dict(BAD, **{RESTORES: 1})  # a signal came before the distance was measured anew


@pytest.mark.parametrize('records, action, earlier', [
    ([], None, (None, 490, 0)), ([], 'restore', (None, 490, 0)), ([{'global_step': 400}], 'stop', (None, 490, 0)),
    ([GOOD], None, (0.1, 400, 0)), ([GOOD], 'restore', (0.1, 400, 0)),
    ([GOOD, BAD], None, (0.7, 500, 0)), ([GOOD, BAD], 'stop', (0.1, 400, 0)), ([GOOD, BAD], 'restore', (0.1, 400, 0)),
    ([BAD], 'restore', (0, 0, 0)), ([GOOD, *WENT_BACK], 'restore', (0.3, 600, 2)),
    (WENT_BACK, 'restore', (0.3, 600, 2)), ([GOOD, CUT_OFF], 'restore', (None, 500, 1)),
    ([GOOD, *WENT_BACK, record(700, 0.4, 0.5, False)], 'restore', (0.1, 700, 0)),
    # it was warned of, and trained on; no later epoch had a leap
    ([GOOD, BAD, record(600, 0.2, 0.9, False)], 'restore', (0.1, 400, 0)),
    ([GOOD, BAD, record(600, 0.2, 0.9, False)], None, (0.7, 600, 0))])
def test_what_was_measured_before(tmp_path, records, action, earlier):
    """A checkpoint of within an overfitted epoch, at step 490, is not taken for a good one."""
    (tmp_path / 'stats.json').write_text(json.dumps(records))
    found = earlier_measurement(str(tmp_path), action, 490)
    assert found == pytest.approx(earlier) if None not in earlier else found == earlier


@pytest.mark.parametrize('records, earlier', [([GOOD], (None, 400, 0)), ([GOOD, WENT_BACK[0]], (None, 500, 1))])
def test_what_it_begins_with_is_measured_anew(tmp_path, records, earlier):
    """--attack-step-size may be another one now."""
    (tmp_path / 'stats.json').write_text(json.dumps(records))
    assert earlier_measurement(str(tmp_path), 'restore', records[-1]['global_step']) == earlier


def test_overfitting_over_several_epochs_is_found():
    """Errors of a real training, with plain FGSM of budget 32 on two classes of photos: apart by degrees."""
    errors = [(0.484, 0.672), (0.293, 0.754), (0.211, 0.875), (0.176, 0.871), (0.125, 0.957)]
    found = []

    class Measured(overfitting.Guard):
        def measure(self):
            return errors[len(found)]

    def put_scalar(name, value):
        if name == FOUND:
            found.append(value)
    guard = Measured(None, 32, 4, SimpleNamespace(is_chief=True, size=1), one_step=None, several=None,
                     earlier=overfitting.Earlier(0.0))
    guard.trainer = SimpleNamespace(monitors=SimpleNamespace(put_scalar=put_scalar), epoch_num=1, global_step=1)
    for _ in errors:
        guard._trigger_epoch()
    assert found == [0, 1, 0, 0, 1]  # it is said again when it is worse by as much
