"""Methods of adversarial training by name: what each does with a batch, its own flags, and what goes with them.

TensorFlow is loaded by what builds a graph: wrong flags are told at once.

    method = method_of(options)
    model = AdversarialModel(network, method.attacker(num_classes=1000), 224, lesson=method.lesson(), ...)
"""
import argparse
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Set, Tuple, Type

from attacks.table import GOALS
from evaluation.outcomes import Strength
from runtime.errors import InputError

if TYPE_CHECKING:
    from adv_model import Lesson
    from attacks.pgd import Attacker
    from training.replays import Replays

GUARD_STEPS = 10  # of the attack that overfitting is told by
SEVERAL_STEPS = 'several steps, by --method pgd'
FAST_STEP = 1.25  # of epsilon: Wong, Rice and Kolter (2020) found more to overfit, and less to be weaker


class Method:
    """Trains on images that PGD attacked, as published (Section 5): what a training does without --method.

    Args:
        options: the flags of a training, as `settle_method` leaves them.
    """
    title = 'PGD'  # begins the log directory's name
    own_flags: Dict[str, Any] = {}  # of no other method, and their defaults
    goals: Tuple[str, ...] = GOALS  # what --attack-goal can be, the default first
    takes_steps = True  # of --attack-iter; the others take one
    # A step's batch is held and trained on again; there is no attack apart from the training, whose passes, in float32,
    # attack it
    holds_batches = False

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.goal: str = options.attack_goal
        self.strength = Strength(options.attack_iter[0], options.attack_epsilon[0], options.training_step_size)

    @classmethod
    def step_size(cls, options: argparse.Namespace) -> float:
        """Return the step, in pixels, where --attack-step-size says none."""
        return options.attack_step_size

    @property
    def attacks(self) -> bool:
        """Tell whether this is adversarial training."""
        return self.strength.num_iter > 0

    @property
    def targeted(self) -> bool:
        """Tell whether images are attacked towards labels, so that the attack's success is known."""
        return self.attacks and self.goal == 'targeted'

    @property
    def guarded_by_default(self) -> bool:
        """Tell whether the guard against catastrophic overfitting is on without being asked for."""
        return not self.takes_steps

    @property
    def against_overfitting(self) -> List[str]:
        """Name what may avoid catastrophic overfitting, the surest last. A step can't be made shorter than epsilon
        over the number of steps."""
        return ['a larger --attack-iter']

    @property
    def replays(self) -> int:
        """Return how often a step trains on its batch."""
        return 1

    def name(self) -> str:
        """Return the beginning of the log directory's name: with its own flags' values, and a goal that isn't usual."""
        settings = ['%s%s' % (flag, value) for flag, value in self.settings().items()]
        goal = [self.goal] if self.attacks and self.goal != self.goals[0] else []
        return '-'.join([self.title] + settings + goal)

    def attack_name(self) -> str:
        """Name its attack: trainings with the same name attack alike."""
        step = self.strength.step_used if self.takes_steps else self.strength.step_size
        return '-'.join([self.name(), *map(str, self.strength._replace(step_size=step))])

    def settings(self) -> Dict[str, Any]:
        """Return its own flags' values, those that count."""
        return {flag: getattr(self.options, flag) for flag in self.own_flags
                if getattr(self.options, flag) is not None}

    def attacker(self, *, num_classes: int, step_factor: Any = 1.0, **computed: Any) -> 'Attacker':
        """Return what attacks a batch. step_factor: a number or a scalar tensor, times which steps are.

        computed: xla and loss_scale, as PGDAttacker has them.
        """
        from adv_model import CLEAN_START_PROBABILITY
        from attacks.pgd import NoOpAttacker, PGDAttacker
        if not self.attacks:
            return NoOpAttacker()
        made = PGDAttacker(*self.strength, num_classes=num_classes, goal=self.goal,
                           clean_start_probability=CLEAN_START_PROBABILITY, **computed)
        return scaled(made, step_factor)

    def one_step(self, *, num_classes: int, step_factor: Any = 1.0) -> 'Attacker':
        """Return the attack of a single step that the guard compares with one of several."""
        from training.attackers import FastAttacker
        epsilon = self.strength.epsilon
        step = self.strength.step_size if not self.takes_steps else FAST_STEP * epsilon
        return scaled(FastAttacker(epsilon, step, num_classes=num_classes, goal=self.goal), step_factor)

    def several_steps(self, *, num_classes: int) -> 'Attacker':
        """Return the attack that the guard compares that with: PGD of the same budget and goal."""
        from attacks.pgd import PGDAttacker
        return PGDAttacker(GUARD_STEPS, self.strength.epsilon, 1.0, num_classes=num_classes, goal=self.goal)

    @property
    def largest_loss(self) -> float:
        """Return how many times a cross-entropy the loss may be."""
        return 1.0

    def lesson(self, replays: Optional['Replays'] = None) -> 'Lesson':
        """Return what is learnt from a batch: the loss."""
        from adv_model import Lesson
        return Lesson()


class Fast(Method):
    """Trains on images that one long step from noise attacked (Wong et al. 2020); with --noise N-FGSM (de Jorge et al.
    2022), from more noise and unprojected."""
    title = 'Fast'
    own_flags = {'noise': None}
    goals = GOALS[::-1]
    takes_steps = False

    @classmethod
    def step_size(cls, options: argparse.Namespace) -> float:
        return options.attack_epsilon[0] * (1.0 if options.noise is not None else FAST_STEP)

    @property
    def against_overfitting(self) -> List[str]:
        return ['a smaller --attack-step-size', '--noise 2' if self.options.noise is None else 'more --noise',
                SEVERAL_STEPS]

    def attacker(self, *, num_classes: int, step_factor: Any = 1.0, **computed: Any) -> 'Attacker':
        from training.attackers import FastAttacker
        _, epsilon, step = self.strength
        made = FastAttacker(epsilon, step, num_classes=num_classes, goal=self.goal, noise=self.options.noise,
                            **computed)
        return scaled(made, step_factor)

    def one_step(self, *, num_classes: int, step_factor: Any = 1.0) -> 'Attacker':
        return self.attacker(num_classes=num_classes, step_factor=step_factor)


class Free(Method):
    """Trains several times on each batch, and each backward pass also makes the attack (Shafahi et al. 2019)."""
    title = 'Free'
    own_flags = {'replays': 8}
    goals = ('untargeted',)  # the loss that is raised is the one that is learnt
    takes_steps, holds_batches = False, True

    @classmethod
    def step_size(cls, options: argparse.Namespace) -> float:
        return options.attack_epsilon[0]

    @property
    def against_overfitting(self) -> List[str]:
        return ['a smaller --attack-step-size', 'more --replays', SEVERAL_STEPS]

    @property
    def replays(self) -> int:
        return self.options.replays

    def attacker(self, *, num_classes: int, step_factor: Any = 1.0, **computed: Any) -> 'Attacker':
        from attacks.pgd import NoOpAttacker
        return NoOpAttacker()  # the perturbation is the lesson's

    def lesson(self, replays: Optional['Replays'] = None) -> 'Lesson':
        from training.lessons import FreeLesson
        assert replays is not None
        return FreeLesson(replays)


class Trades(Method):
    """Trains on clean images, and to classify attacked ones as it does those (Zhang et al. 2019)."""
    title = 'TRADES'
    own_flags = {'beta': 6.0}
    goals = ('untargeted',)

    def attacker(self, *, num_classes: int, step_factor: Any = 1.0, **computed: Any) -> 'Attacker':
        from training.attackers import TradesAttacker
        return scaled(TradesAttacker(*self.strength, num_classes=num_classes, **computed), step_factor)

    @property
    def largest_loss(self) -> float:
        return 1 + self.options.beta

    def lesson(self, replays: Optional['Replays'] = None) -> 'Lesson':
        from training.lessons import TradesLesson
        return TradesLesson(self.options.beta)


METHODS: Dict[str, Type[Method]] = {'pgd': Method, 'fast': Fast, 'free': Free, 'trades': Trades}


def method_of(options: argparse.Namespace) -> Method:
    """Return the method that the flags of a training name, as `settle_method` leaves them."""
    return METHODS[options.method](options)


def scaled(attacker: Any, factor: Any) -> Any:
    """Return the attacker, whose steps are `factor` times as long from now on."""
    if not (isinstance(factor, float) and factor == 1.0):
        attacker.step_size = attacker.step_size * factor
    return attacker


def settle_method(options: argparse.Namespace, given: Set[str]) -> None:
    """Set what the method determines: steps, step sizes, the goal, its own flags' defaults.

    Raises InputError for flags that don't go with it.
    Afterwards attack_step_size is that of evaluations between epochs, and training_step_size that of the method.

    given: the names of the flags that stand in the command.
    """
    kind = METHODS[options.method]
    named = '--method ' + options.method
    for other, of_other in METHODS.items():
        for flag in of_other.own_flags:
            if flag in given and flag not in kind.own_flags:
                raise InputError('--%s goes with --method %s, not with %s' % (flag, other, named))
    for flag, default in kind.own_flags.items():
        if getattr(options, flag) is None:
            setattr(options, flag, default)
    check_steps(options, given, kind, named)
    if options.attack_goal and options.attack_goal not in kind.goals:
        raise InputError('%s has no attack that is %s: leave out --attack-goal' % (named, options.attack_goal))
    options.attack_goal = options.attack_goal or kind.goals[0]
    if kind.holds_batches and (options.xla or options.use_fp16xla
                               or options.attack_dtype not in (None, 'float32')):
        raise InputError('%s has no attack apart from the training step, which is in float32: leave out '
                         '--attack-dtype, --xla and --use-fp16xla' % named)
    options.training_step_size = options.attack_step_size
    if 'attack_step_size' not in given:
        options.training_step_size = kind.step_size(options)
    elif not kind.takes_steps:  # evaluations take several steps, of their usual size
        options.attack_step_size = 1.0


def check_steps(options: argparse.Namespace, given: Set[str], kind: Type[Method], named: str) -> None:
    """Settle --attack-iter. Raises InputError where the method takes other steps."""
    if kind.takes_steps:
        if options.attack_iter[0] == 0 and kind is not Method:
            raise InputError('%s needs an attack: give --attack-iter 1 or more' % named)
        return
    if 'attack_iter' in given and options.attack_iter != [1]:
        raise InputError('%s attacks by one step%s, not by --attack-iter %d: leave that out' % (
            named, ' in each of its --replays' * ('replays' in kind.own_flags), options.attack_iter[0]))
    options.attack_iter = [1]


def own_flags() -> List[str]:
    """List the flags that go with one method alone."""
    return [flag for kind in METHODS.values() for flag in kind.own_flags]
