"""The guard against catastrophic overfitting: what a training that is continued knows of the one before."""
import json

import pytest

from training.overfitting import FOUND, ONE_STEP, SEVERAL, earlier_measurement


def record(step, one, several, found):
    return {'global_step': step, 'epoch_num': step // 100, ONE_STEP: one, SEVERAL: several, FOUND: float(found)}


GOOD, BAD = record(400, 0.4, 0.5, False), record(500, 0.2, 0.9, True)


@pytest.mark.parametrize('records, action, distance, step', [
    ([], None, 0, 490), ([], 'restore', 0, 490), ([{'global_step': 400}], 'stop', 0, 490),
    ([GOOD], None, 0.1, 400), ([GOOD], 'restore', 0.1, 400),
    ([GOOD, BAD], None, 0.7, 500), ([GOOD, BAD], 'stop', 0.1, 400), ([GOOD, BAD], 'restore', 0.1, 400),
    ([BAD], 'restore', 0, 0)])
def test_what_was_measured_before(tmp_path, records, action, distance, step):
    """A checkpoint of within an overfitted epoch, at step 490, is not taken for a good one."""
    (tmp_path / 'stats.json').write_text(json.dumps(records))
    found = earlier_measurement(str(tmp_path), action, 490)
    assert found == (pytest.approx(distance), step)
