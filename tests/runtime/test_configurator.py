"""runtime/configurator.py: types, config files, one-line errors, and a script run as a user runs it."""
import os
import signal
import subprocess
import sys

import pytest

from conftest import ROOT, refused
from runtime.configurator import UserError, configure

DEFAULTS = dict(
    learning_rate=1e-3, batch_size=12, wandb_log=False, out_dir='out', device='auto',
    compile='auto', depths=(1, 1, 1), betas=(.9, .999), stages=['operator'], sizes=(), lam=None,
    latent_dim=16, hidden_dim=32, _private=1, math=os, helper=len, __doc__='text')
CHOICES = {'device': ('auto', 'cpu', 'cuda', 'mps'), 'compile': ('auto', 'true', 'false'),
           'stages': ('operator', 'other')}


def resolve(*argv):
    return configure(DEFAULTS, list(argv), __file__, CHOICES)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a config file into an empty working directory; returns its name."""
    monkeypatch.chdir(tmp_path)
    def _write(text, name='c.py'):
        (tmp_path / name).write_text(text)
        return name
    return _write


def test_keys_are_the_public_plain_globals():
    assert resolve() == {k: v for k, v in DEFAULTS.items()
                         if k not in ('_private', 'math', 'helper', '__doc__')}


@pytest.mark.parametrize('arg, key, expected', [
    ('--learning_rate=1', 'learning_rate', 1.),
    ('--learning-rate=1e-3', 'learning_rate', 1e-3),
    ('--batch_size=1e4', 'batch_size', 10000),
    ('--batch_size=9007199254740993', 'batch_size', 2**53 + 1),  # a float would round it
    ('--wandb_log=TRUE', 'wandb_log', True),
    ('--wandb_log=False', 'wandb_log', False),
    ('--wandb_log=1', 'wandb_log', True),
    ('--out_dir=123', 'out_dir', '123'),
    ('--out_dir=', 'out_dir', ''),
    ('--out_dir=a=b', 'out_dir', 'a=b'),
    ('--out_dir=None', 'out_dir', 'None'),
    ('--device=CPU', 'device', 'cpu'),
    ('--compile=True', 'compile', 'true'),
    ('--depths=2,4,2', 'depths', (2, 4, 2)),
    ('--depths=(2, 4, 2)', 'depths', (2, 4, 2)),
    ('--depths=[2,4,2]', 'depths', (2, 4, 2)),
    ('--depths=2', 'depths', (2,)),
    ('--depths=2,', 'depths', (2,)),
    ('--depths=1e1,2', 'depths', (10, 2)),
    ('--betas=1,.95', 'betas', (1., .95)),
    ('--stages=operator,OTHER', 'stages', ['operator', 'other']),
    ('--stages=["operator", \'other\']', 'stages', ['operator', 'other']),
    ('--stages=', 'stages', []),
    ('--sizes=1,2.5,word,none', 'sizes', (1, 2.5, 'word', None)),
    ('--sizes=(1, (2, 3))', 'sizes', (1, (2, 3))),
    ('--lam=1e-2', 'lam', .01),
    ('--lam=[1, 2]', 'lam', [1, 2]),
    ('--lam=NONE', 'lam', None),
    ('--lam=false', 'lam', False),  # the text 'false' would count as true
    ('--lam=data/x.h5', 'lam', 'data/x.h5'),
    ('--lam=__import__("os").abort()', 'lam', '__import__("os").abort()'),  # never run
    ('--lam=' + '(' * 5000, 'lam', '(' * 5000),
])
def test_command_line(arg, key, expected):
    value = resolve(arg)[key]
    assert value == expected and type(value) is type(expected)
    if isinstance(value, (tuple, list)):
        assert [type(v) for v in value] == [type(v) for v in expected]


@pytest.mark.parametrize('arg, expected', [
    ('--learning_rat=1',
     "unknown key 'learning_rat', did you mean 'learning_rate'? (command line)"),
    ('--learning-rat', "unknown key 'learning_rat', did you mean 'learning_rate'?"),
    ('--LEARNING_RATE=1', "did you mean 'learning_rate'?"),
    ('--zzz=1', "unknown key 'zzz' (command line) .. --help"),
    ('--_private=1', "unknown key '_private'"),
    ('--batch_size=1.5', "batch_size='1.5' must be a whole number"),
    ('--batch_size=ten', "batch_size='ten' must be a whole number (command line)"),
    ('--batch_size=', "batch_size='' must be a whole number"),
    ('--batch_size=inf', "batch_size='inf' must be finite"),
    ('--learning_rate=nan', "learning_rate='nan' must be finite"),
    ('--learning_rate=-inf', "learning_rate='-inf' must be finite"),
    ('--learning_rate=true', "learning_rate='true' must be a number"),
    ('--betas=.9,nan', "betas='.9,nan' has 'nan', which must be finite"),
    ('--lam=1e999', "lam='1e999' must be finite"),
    ('--lam={1, 2}', 'lam= .. must be a number, text'),
    ('--wandb_log=yes', "wandb_log='yes' must be true or false"),
    ('--wandb_log=2', "wandb_log='2' must be true or false"),
    ('--device=tpu', "device='tpu' is not one of auto, cpu, cuda, mps"),
    ('--device=', "device='' is not one of auto, cpu, cuda, mps"),
    ('--stages=operater', "has 'operater', which is not one of operator, other"),
    ('--depths=2,,2', "depths='2,,2' has '', which must be a whole number"),
    ('--depths=2,1.5', 'has 1.5, which must be a whole number'),
    ('--batch_size', 'write --batch_size=value'),
    ('--wandb-log', 'write --wandb_log=true'),
    ('-x', "cannot read '-x' .. write --key=value"),
    ('--', "cannot read '--'"),
    ('batch_size=3', 'write --batch_size=3'),
])
def test_command_line_refused(arg, expected):
    message = refused(resolve, arg)
    for part in expected.split(' .. '):
        assert part in message


@pytest.mark.parametrize('text, key, expected', [
    ('learning_rate = 1', 'learning_rate', 1.),
    ("learning_rate = '1e-3'", 'learning_rate', 1e-3),
    ('batch_size = 1e4', 'batch_size', 10000),
    ('latent_dim = 64\nhidden_dim = 2 * latent_dim', 'hidden_dim', 128),
    ('import os.path as p, math\nfrom math import sqrt\nclass C: pass\ndef f(): return 4\n'
     '_n = int(math.sqrt(f()))\nbatch_size = _n', 'batch_size', 2),
    ('depths = [2, 2]', 'depths', (2, 2)),
    ("stages = ('operator', 'Other')", 'stages', ['operator', 'other']),
    ("stages = ('other')", 'stages', ['other']),  # the forgotten comma
    ("stages.append('other')", 'stages', ['operator', 'other']),
    ('compile = True', 'compile', 'true'),
    ("lam = '123'", 'lam', '123'),
    ('lam = (1, 2)', 'lam', (1, 2)),
    ('del batch_size', 'batch_size', 12),
])
def test_config_file(write, text, key, expected):
    value = resolve(write(text))[key]
    assert value == expected and type(value) is type(expected)
    assert DEFAULTS['stages'] == ['operator']  # a file changes a copy


@pytest.mark.parametrize('text, expected', [
    ('batch_size = 3\nlearning_rat = 1',
     "unknown key 'learning_rat', did you mean 'learning_rate'? (c.py:2)"),
    ("batch_size = 'x'\nlearning_rat = 1", 'learning_rat'),  # the typo explains more
    ('for i in range(3): pass', "unknown key 'i' (c.py:1) .. begin with _"),
    ('\nbatch_size = 1.5', 'batch_size=1.5 must be a whole number (c.py:2)'),
    ('batch_size = True', 'batch_size=True must be a whole number'),
    ('wandb_log = 2', 'wandb_log=2 must be true or false'),
    ('out_dir = 3', 'out_dir=3 must be text, in quotes (c.py:1)'),
    ('compile = 3', "compile=3 is not one of auto, true, false"),
    ("stages += ['x']", "has 'x', which is not one of operator, other (c.py:1)"),
    ('depths = 2', 'depths=2 must be a tuple, like (1, 1, 1)'),
    ("learning_rate = float('nan')", 'learning_rate=nan must be finite'),
    ('lam = object()', 'lam=<object .. must be a number, text'),
    ('batch_size = 3\nlearning_rate = = 1', 'c.py:2: SyntaxError: invalid syntax'),
    ('return', "c.py:1: SyntaxError: 'return' outside function"),
    ('\n1 / 0', 'c.py:2: ZeroDivisionError: division by zero'),
    ('def f():\n    raise KeyError\nf()', 'c.py:2: KeyError'),
    ("raise ValueError('two\\nlines')", 'c.py:1: ValueError: two lines'),
    ('exit()', 'c.py:1: SystemExit'),
    ('import no_such_module', "c.py:1: ModuleNotFoundError: No module named 'no_such_module'"),
    ('\0', 'c.py:1: '),
])
def test_config_file_refused(write, text, expected):
    message = refused(resolve, write(text))
    for part in expected.split(' .. '):
        assert part in message


def test_files_in_order_then_the_command_line(write):
    a = write('batch_size = 1\nlatent_dim = 8', 'a.py')
    b = write('batch_size = 2 * batch_size\nhidden_dim = 4 * latent_dim', 'b.py')
    config = resolve('--latent_dim=9', a, b, '--hidden_dim=1', '--hidden_dim=7')
    assert (config['batch_size'], config['latent_dim'], config['hidden_dim']) == (2, 9, 7)


def test_a_misspelt_option_is_refused_before_any_file_runs(write, tmp_path):
    name = write(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert 'learning_rate' in refused(resolve, name, '--learning_rat=1')
    assert not (tmp_path / 'ran').exists()


def test_missing_file_and_directory(write, tmp_path):
    (tmp_path / 'config').mkdir()
    write('', 'config/burgers_cpu.py')
    assert "did you mean 'config/burgers_cpu.py'?" in refused(resolve, 'config/burger_cpu.py')
    assert "did you mean 'config/burgers_cpu.py'?" in refused(resolve, 'burgers_cpu.py')
    assert "no config file 'zz/qq.py': check the path" in refused(resolve, 'zz/qq.py')
    assert "'config' is a directory" in refused(resolve, 'config')


def test_user_error_is_one_line():
    assert str(UserError('a\nb')) == 'a b'
    assert issubclass(UserError, ValueError)


# -----------------------------------------------------------------------------
# dicts: the settings of a stage, which override plain keys


STAGED = dict(DEFAULTS, decoder_stage={'batch_size': 4, 'learning_rate': 3e-4}, steady_stage={},
              UNITS={'s': 'm'})


def resolve_staged(*argv):
    return configure(STAGED, list(argv), __file__, CHOICES)


def refused_staged(*argv):
    with pytest.raises(UserError) as caught:
        resolve_staged(*argv)
    return str(caught.value)


def test_a_dict_of_the_script_is_a_key_and_a_constant_is_not():
    config = resolve_staged()
    assert config['decoder_stage'] == {'batch_size': 4, 'learning_rate': 3e-4}
    assert config['steady_stage'] == {}
    assert 'UNITS' not in config


@pytest.mark.parametrize('argv, stage, expected', [
    (['--decoder_stage.batch_size=5'], 'decoder_stage', {'batch_size': 5, 'learning_rate': 3e-4}),
    (['--decoder-stage.batch-size=1e1'], 'decoder_stage', {'batch_size': 10, 'learning_rate': 3e-4}),
    (['--decoder_stage.depths=2,2', '--decoder_stage.batch_size=5'], 'decoder_stage',
     {'batch_size': 5, 'learning_rate': 3e-4, 'depths': (2, 2)}),
    (['--steady_stage.compile=TRUE'], 'steady_stage', {'compile': 'true'}),
])
def test_a_setting_of_a_stage_on_the_command_line(argv, stage, expected):
    config = resolve_staged(*argv)
    assert config[stage] == expected
    for key, value in expected.items():
        assert type(config[stage][key]) is type(expected[key])
    del config[stage]
    without = resolve_staged()
    del without[stage]
    assert config == without
    assert STAGED['decoder_stage'] == {'batch_size': 4, 'learning_rate': 3e-4}  # the default is not touched
    assert STAGED['steady_stage'] == {}


@pytest.mark.parametrize('text', [
    'decoder_stage = dict(batch_size=1e1, wandb_log=True)',
    "decoder_stage['batch_size'] = 10\ndecoder_stage['wandb_log'] = True",
    'decoder_stage.update(batch_size=2 * 5, wandb_log=True)',
])
def test_a_config_file_adds_to_the_settings_of_a_stage(write, text):
    config = resolve_staged(write(text))
    assert config['decoder_stage'] == {'batch_size': 10, 'learning_rate': 3e-4, 'wandb_log': True}
    assert type(config['decoder_stage']['batch_size']) is int


def test_settings_of_a_stage_in_order(write):
    a = write('decoder_stage = dict(batch_size=7, depths=[3])', 'a.py')
    b = write('decoder_stage = dict(depths=(4, 4))', 'b.py')
    config = resolve_staged('--decoder_stage.learning_rate=1', a, b)
    assert config['decoder_stage'] == {'batch_size': 7, 'learning_rate': 1., 'depths': (4, 4)}
    assert config['batch_size'] == 12


@pytest.mark.parametrize('arg, expected', [
    ('--decoder_stage=3', '--decoder_stage holds several settings (command line): write '
     '--decoder_stage.batch_size=value'),
    ('--decoder_stage', 'write --decoder_stage.batch_size=value'),
    ('--steady_stage=dict()', 'write --steady_stage.max_iters=value'),
    ('--decoder_stage.batch_siz=3',
     "unknown key 'decoder_stage.batch_siz', did you mean 'decoder_stage.batch_size'? (command line)"),
    ('--decoder_stage.zzz=3', "unknown key 'decoder_stage.zzz' (command line)"),
    ('--decoder_stag.batch_size=3',
     "unknown key 'decoder_stag.batch_size', did you mean 'decoder_stage.batch_size'? (command line)"),
    ('--decoder_stage.steady_stage=3', "unknown key 'decoder_stage.steady_stage'"),
    ('--decoder_stage.batch_size', 'write --decoder_stage.batch_size=value'),
    ('--decoder_stage.batch_size=1.5',
     "decoder_stage.batch_size='1.5' must be a whole number (command line)"),
    ('--decoder_stage.device=tpu', "decoder_stage.device='tpu' is not one of auto, cpu, cuda, mps"),
    ('--batch_size.depths=3', "unknown key 'batch_size.depths'"),
])
def test_settings_of_a_stage_refused(arg, expected):
    assert expected in refused_staged(arg)


@pytest.mark.parametrize('text, expected', [
    ('\ndecoder_stage = dict(batch_siz=3)',
     "unknown key 'decoder_stage.batch_siz', did you mean 'decoder_stage.batch_size'? (c.py:2)"),
    ("decoder_stage = dict(batch_size='x')", "decoder_stage.batch_size='x' must be a whole number (c.py:1)"),
    ('decoder_stage = {1: 2}', "unknown key 'decoder_stage.1' (c.py:1)"),
    ('decoder_stage = 3', 'decoder_stage=3 must be a dict, like dict(max_iters=1000) (c.py:1)'),
    ('decoder_stag = dict(batch_size=3)',
     "unknown key 'decoder_stag', did you mean 'decoder_stage'? (c.py:1)"),
])
def test_settings_of_a_stage_in_a_file_refused(write, text, expected):
    assert expected in refused_staged(write(text))


def test_a_script_whose_stage_sets_no_key_is_refused():
    with pytest.raises(UserError, match="unknown key 'stage.batch_siz', did you mean 'stage.batch_size'"):
        configure(dict(DEFAULTS, stage={'batch_siz': 3}), [], 'train.py')


# -----------------------------------------------------------------------------
# bounds


NUMBERS = dict(batch_size=12, noise=0., drop_path=0., memory_gb=-1., seed=0, depths=(1, 2), warm=True,
               nu=None, decoder_stage={})
BOUNDS = {'noise': (0, None), 'drop_path': (0, 1), 'memory_gb': (None, None), 'seed': (0, 2 ** 32),
          'depths': (1, None), 'nu': (0, None)}


@pytest.mark.parametrize('arg', [
    '--noise=0', '--noise=1e9', '--drop_path=0.999', '--memory_gb=-1e9', '--memory_gb=0', '--seed=0',
    f'--seed={2 ** 32 - 1}', '--warm=false', '--nu=0', '--nu=none', '--nu=text', '--batch_size=1',
    '--decoder_stage.noise=0', '--decoder_stage.warm=false'])
def test_within_bounds(arg):
    configure(NUMBERS, [arg], __file__, {}, BOUNDS)


@pytest.mark.parametrize('arg, expected', [
    ('--batch_size=0', 'batch_size=0 must be positive'),
    ('--batch_size=-1', 'batch_size=-1 must be positive'),
    ('--noise=-1', 'noise=-1.0 must be at least 0'),
    ('--drop_path=1', 'drop_path=1.0 must be below 1'),
    ('--drop_path=-.1', 'drop_path=-0.1 must be at least 0'),
    ('--seed=4294967296', 'seed=4294967296 must be below 4294967296'),
    ('--depths=1,0', 'depths=(1, 0) must be at least 1'),
    ('--nu=-1', 'nu=-1 must be at least 0'),
    ('--decoder_stage.batch_size=0', 'decoder_stage.batch_size=0 must be positive'),
    ('--decoder_stage.drop_path=1', 'decoder_stage.drop_path=1.0 must be below 1'),
])
def test_out_of_bounds(arg, expected):
    with pytest.raises(UserError) as caught:
        configure(NUMBERS, [arg], __file__, {}, BOUNDS)
    assert str(caught.value) == expected


def test_bounds_hold_for_config_files_and_defaults(write):
    with pytest.raises(UserError, match='^noise=-1.0 must be at least 0$'):
        configure(NUMBERS, [write('noise = -1')], __file__, {}, BOUNDS)
    fewer = {key: bound for key, bound in BOUNDS.items() if key != 'memory_gb'}
    with pytest.raises(UserError, match='^memory_gb=-1.0 must be positive$'):
        configure(NUMBERS, [], __file__, {}, fewer)


# -----------------------------------------------------------------------------
# --help of stages, and of keys that are not in the script


HELP_SCRIPT = """
batch_size = 12  # windows an iteration
optimizer = 'muon'  # of the matrices
# --- stages
decoder_stage = {  # what the decoder's stage overrides
    'batch_size': 4,  # it is small
    'optimizer': 'adamw',
}
steady_stage = {'batch_size': 3}  # on one line
"""


def test_help_of_stages_and_of_the_equations(tmp_path, capsys):
    path = tmp_path / 'toy.py'
    path.write_text(HELP_SCRIPT)
    defaults = {}
    exec(HELP_SCRIPT, defaults)
    choices = {'optimizer': ('muon', 'adamw')}
    with pytest.raises(SystemExit) as caught:
        configure({'beta': None, 'nu': None, **defaults}, ['--help'], str(path), choices)
    assert caught.value.code == 0
    lines = [' '.join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[lines.index('Keys, defaults:') + 1:] == [
        '--batch_size=12 windows an iteration',
        '--optimizer=muon of the matrices (muon, adamw)',
        '',
        'stages',
        "--decoder_stage.KEY=VALUE what the decoder's stage overrides",
        '--decoder_stage.batch_size=4 it is small',
        '--decoder_stage.optimizer=adamw (muon, adamw)',
        '--steady_stage.KEY=VALUE on one line',
        '--steady_stage.batch_size=3',
        '',
        'parameters of the equations (default: those of the entry)',
        '--beta=None',
        '--nu=None']


@pytest.mark.parametrize('text, expected', [
    ('.01', .01), ('1', 1), ('-2.5', -2.5), ('.01,.001', (.01, .001)), ('[1, 2]', [1, 2]), ('none', None)])
def test_a_parameter_of_an_equation_takes_any_literal(text, expected):
    value = configure({'nu': None}, [f'--nu={text}'], __file__)['nu']
    assert value == expected and type(value) is type(expected)


# -----------------------------------------------------------------------------
# the process: exit codes and streams


SCRIPT = '''"""Toy script.

batch_size: # not a heading
"""
import sys
from runtime.configurator import UserError, configure, one_line_errors
# --- data -----------------------------------------------------------------

out_dir = 'out' # where the run goes
url = 'a#b'     # not a comment in the text
# a stale comment

batch_size = 12
# optimiser
learning_rate = 1e-3 # peak
depths = (1, 2) # blocks
device = 'auto' # auto or cpu
one_line_errors(); one_line_errors()
globals().update(configure(globals(), sys.argv[1:], __file__, {'device': ('auto', 'cpu')}))
class OutOfMemoryError(RuntimeError): pass
if out_dir == 'user': raise UserError('first\\nsecond')
if out_dir == 'oom': raise OutOfMemoryError('CUDA out of memory. Tried 2.00 GiB. GPU 0 has 1.')
if out_dir == 'int': raise KeyboardInterrupt
if out_dir == 'pipe': raise BrokenPipeError
if out_dir == 'bug': raise RuntimeError('bug')
print(batch_size, learning_rate, depths)
'''


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp('script') / 'toy.py'
    path.write_text(SCRIPT)
    env = dict(os.environ, PYTHONPATH=ROOT)
    def _run(*argv):
        p = subprocess.run([sys.executable, str(path), *argv], env=env, capture_output=True,
                           text=True, timeout=60)
        return p.returncode, p.stdout, p.stderr
    return _run


@pytest.mark.parametrize('arg, code, out, err', [
    ('--batch-size=1e2', 0, '100 0.001 (1, 2)\n', ''),
    ('--learning_rat=1', 1, '',
     "error: unknown key 'learning_rat', did you mean 'learning_rate'? (command line)\n"),
    ('--out_dir=user', 1, '', 'error: first second\n'),
    ('--out_dir=oom', 1, '', 'error: CUDA out of memory. Tried 2.00 GiB: lower batch_size, raise '
     'accumulation, set checkpointing=True, in that order\n'),
    ('--out_dir=int', 130, '', ''),
    ('--out_dir=pipe', 1, '', ''),
])
def test_exit_codes(run, arg, code, out, err):
    assert run(arg) == (code, out, err)


def test_a_bug_keeps_its_traceback(run):
    code, out, err = run('--out_dir=bug')
    assert code == 1 and err.startswith('Traceback') and err.endswith('RuntimeError: bug\n')


def test_help(run):
    code, out, err = run('nonsense.py', '--help')
    assert (code, err) == (0, '')
    lines = [' '.join(line.split()) for line in out.splitlines()]
    assert lines[0] == 'Toy script.'
    assert lines[-9:] == [
        'data', '--out_dir=out where the run goes', "--url='a#b' not a comment in the text",
        '--batch_size=12', '', 'optimiser', '--learning_rate=0.001 peak', '--depths=1,2 blocks',
        '--device=auto auto or cpu']


@pytest.mark.skipif(os.name != 'posix', reason='signals and pipes of POSIX')
def test_help_into_a_closed_pipe(tmp_path):
    (tmp_path / 'toy.py').write_text(SCRIPT)
    read, write = os.pipe()
    os.close(read)
    p = subprocess.run([sys.executable, str(tmp_path / 'toy.py'), '--help'], stdout=write,
                       stderr=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=ROOT), timeout=60)
    os.close(write)
    assert p.stderr == b''


@pytest.mark.skipif(os.name != 'posix', reason='signals and pipes of POSIX')
def test_ctrl_c_leaves_130(tmp_path):
    (tmp_path / 'nap.py').write_text(
        'import time\nfrom runtime.configurator import one_line_errors\none_line_errors()\n'
        "print('up', flush=True)\ntime.sleep(60)\n")
    # a process in the background ignores SIGINT unless it is told otherwise
    p = subprocess.Popen([sys.executable, str(tmp_path / 'nap.py')], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=ROOT),
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    p.stdout.readline()
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert (p.returncode, err) == (130, b'')
