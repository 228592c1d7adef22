"""The white-box evaluation, `main.py --eval`, from its flags to its figures."""
import argparse
import contextlib
import logging
from typing import Any, Dict, Iterator, List, Sequence, Type

from runtime.compat import ask_for_determinism, depends_on, seed_where_deterministic, tf

import checkpoint
import fitting
from adv_model import Attacker, AttackTower, PGDAttacker
from attacks.table import ATTACKERS
from evaluation.attack import Aims
from evaluation.attack_flags import Evaluated
from evaluation.attackers import attacker_sha256, check_attack, errors_of_attacker, load_attacker
from evaluation.contents import read_contents
from evaluation.course import Column
from evaluation.outcomes import Figures, count
from evaluation.plan import RANDOM, attacks_of, how_attacked
from evaluation.preparation import mistaken_preprocess
from evaluation.records import Inputs, open_records
from evaluation.sanity import suspicions
from evaluation.saved_images import ImageWriter, check_directory
from evaluation.stages import Arms, run_stages
from kernels.mode import attack_settings, native_mode
from nets import network_of
from runtime.agreement import check_agreement
from runtime.command_line import rank
from runtime.distributed import World, connect
from runtime.errors import InputError, RunError
from runtime.fingerprint import sha256_of_files
from runtime.hardware import warn_of_cost
from runtime.pixels import mistaken_attack
from runtime.printing import check_stdout, say
from third_party.preparations import PREPARATIONS

log = logging.getLogger(__name__)


def run_evaluation(options: argparse.Namespace, evaluated: Evaluated) -> int:
    """Print the figures of every attack, keep what --results, --per-image, --journal and --save-adversarial ask for.

    evaluated: the images, of the validation set of --data.
    """
    if rank() == '0':
        check_stdout()
    inputs = find_inputs(options, evaluated)
    world = connect()
    check_agreement(world, vars(options), checkpoint=checkpoint.checkpoint_files(options.load),
                    data=[inputs.dataset.listing(options.data), inputs.dataset.indices, inputs.aims],
                    more_code=''.join(map(attacker_sha256, inputs.attackers.values())) + sha256_of_files(
                        inputs.network.files()))
    warn_of_cost(options.attack_dtype, options.xla)
    warn_of_cost(options.dtype, False, what='classification')
    if options.dtype != 'float32':
        log.info('the figures are of the network in %s (--dtype), which rounds more than float32', options.dtype)
    warnings = mistaken_attack(options.attack_epsilon, options.attack_step_size) if any(options.attack_iter) else []
    warnings += fitting.mistaken_denoising(inputs.network, options.load)
    warnings += mistaken_preprocess(options.arch, options.preprocess, inputs.network.num_classes)
    for warning in warnings:
        log.warning('%s', warning)
    preparation = PREPARATIONS[options.preprocess]()
    contents = read_contents(inputs.dataset, world, options.batch, preparation.check)
    records = world.patiently(lambda: open_records(options, inputs, contents, world))
    token = world.from_chief(records.token)
    if options.save_adversarial:
        check_directory(options.save_adversarial, token)

    how: Dict[str, Any] = dict(image_size=options.image_size, batch=options.batch, preparation=preparation)
    with attacked_network(options, inputs, world) as arms, records:
        # also where a journal is continued: its results are those of the whole set, with all that is to be said of it
        for suspicion in repeated_starts(arms, options) + suspicions(arms.predict, inputs.dataset, world, **how):
            log.warning('%s', suspicion)
            warnings.append(suspicion)
        for stage, positions, outcomes in run_stages(arms, records.course, inputs.attacks, inputs.dataset, world,
                                                     **how):
            records.add(stage, positions, outcomes)

    if records.course:
        try:
            say(figures_text(records.course.columns(), inputs.dataset.labels, saved=bool(options.save_adversarial)))
        except RunError as e:
            records.fail(e)
    records.write_results(ranks=world.size, warnings=warnings)
    return 0


def find_inputs(options: argparse.Namespace, evaluated: Evaluated) -> Inputs:
    """Find what the flags name. Raises InputError where something is missing or does not fit."""
    dataset = evaluated.dataset
    network = network_of(options)._replace(image_size=options.image_size)
    network = network._replace(num_classes=len(dataset.class_names))
    weights = checkpoint.read_checkpoint(options.load, options.weights)
    weights = fitting.fit_checkpoint(weights, network, options.load)
    attackers = {name: load_attacker(name) for name in options.attacker}
    attacks = [attack._replace(shares_steps=has_pgds_loop(attackers[attack.attacker]),
                               finds_step_size=attackers[attack.attacker].finds_step_size)
               for attack in attacks_of(options)]
    return Inputs(network, weights, dataset, attackers, attacks, Aims(options.targets, options.seed, evaluated.targets))


def has_pgds_loop(attacker: Type[Attacker]) -> bool:
    """Tell whether an attack of many steps may pass a shorter one. Where it has a loop of its own it does not."""
    return issubclass(attacker, PGDAttacker) and all(getattr(attacker, name) is getattr(PGDAttacker, name)
                                                     for name in ('attack', 'iterate', 'advance'))


@contextlib.contextmanager
def attacked_network(options: argparse.Namespace, inputs: Inputs, world: World) -> Iterator[Arms]:
    """Build the towers, and a session in which their network has its weights."""
    ask_for_determinism()
    with tf.Graph().as_default() as graph:
        seed_where_deterministic(options.seed)
        towers = {name: build_tower(options, inputs, name) for name in inputs.attackers}
    savers = {name: ImageWriter(options.save_adversarial, inputs.name_in_files(name))
              for name in inputs.attackers} if options.save_adversarial else {}
    with tf.Session(graph=graph, config=world.session_config()) as session:
        checkpoint.assign_weights(session, inputs.weights)
        yield Arms(towers, session, savers, inputs.aims)


def build_tower(options: argparse.Namespace, inputs: Inputs, name: str) -> AttackTower:
    """Build the tower of an attacker. Raises InputError where that isn't made as one, or can't do what the flags
    ask for."""
    attacker, mode = inputs.attackers[name], native_mode()._replace(dtype=tf.as_dtype(options.dtype))
    with errors_of_attacker(attacker, InputError):
        tower = AttackTower(inputs.network, options.image_size, mode=mode, seed=options.seed, attacker=attacker,
                            loss=options.attack_loss, goal=options.attack_goal, num_targets=options.num_targets,
                            **attack_settings(options.attack_dtype, options.xla))
    check_attack(tower)
    if not tower.takes_targets and (options.targets != RANDOM or options.num_targets > 1):
        raise InputError('the attacker %s finds its targets itself: leave out --targets and --num-targets' % name)
    return tower


def repeated_starts(arms: Arms, options: argparse.Namespace) -> List[str]:
    """Say of which attackers restarts are of no use."""
    return ['the attacker %s begins at the same place in every restart: all of them do the same' % name
            for name, tower in arms.towers.items() if options.restarts > 1 and tower.takes_targets
            and not depends_on([tower.start], tower.seed, but_for=tower.index)]


def figures_text(columns: Sequence[Column], labels: Sequence[int], *, saved: bool) -> str:
    """Return the lines with the figures of each attack; saved: also with those of the images as they were saved."""
    lines, several = [], len({column.attack.attacker for column in columns}) > 1
    for column in columns:
        attack, figures = column.attack, count(labels, column.worst)
        step = attack.step_used
        lines.append('%d images, %d attack steps, epsilon %g, step size %s%s' % (
            figures.num_images, attack.strength.num_iter, attack.strength.epsilon,
            'n/a' if step is None else '%g' % step,
            (', ' + attack.attacker if several or attack.attacker in set(ATTACKERS) - {'pgd'} else '') +
            (how_attacked(attack._asdict()) if attack.strength.num_iter else '')))
        if saved:
            lines.append('as saved: ' + rates_text(figures, 'saved_'))
        if attack.num_starts > 1 and attack.strength.num_iter:
            lines.append('first start: ' + rates_text(count(labels, column.first)))
        lines.append(figures.lines(clean=attack.strength.num_iter == 0 and attack.goal == 'targeted'))
    return '\n'.join(lines)


def rates_text(figures: Figures, prefix: str = '') -> str:
    return 'top-1 error %s, attack success rate %s, top-5 error %s' % tuple(
        figures.text(prefix + counted) for counted in ('wrong_top1', 'successes', 'wrong_top5'))
