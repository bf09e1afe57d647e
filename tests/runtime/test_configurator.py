"""runtime/configurator.py: types, config files, settings of stages, keys of groups and equations, --help,
one-line errors, and a script run as a user runs it."""
import argparse
import os
import signal
import subprocess
import sys
import types

import pytest

from conftest import ROOT, refused
from runtime.configurator import (RENAMED, UserError, among, configure, parse_flags, read_keys, resumable,
                                  section)

DEFAULTS = dict(
    learning_rate=1e-3, batch_size=12, wandb_log=False, out_dir='out', device='auto', memory_gb=-1.,
    compile='auto', depths=(1, 1, 1), betas=(.9, .999), stages=('operator',), sizes=(), lam=None,
    latent_dim=16, hidden_dim=32, dataset='burgers', _private=1, math=os, helper=len, __doc__='text')
GROUPS = {'losses': {'lambda_field': (1., 'error of fields')}, 'points': {'num_queries': (0, 'points')}}
STAGES = {'early_stage': ['learning_rate', 'batch_size', 'depths', 'lambda_field'], 'late_stage': ['compile']}


def parameters(dataset):
    """Keys that exist for an equation, or for any."""
    return {'burgers': {'nu': None}, 'advection': {'beta': None}, None: {'nu': None, 'beta': None}}[dataset]


def resolve(*argv):
    return configure(DEFAULTS, list(argv), __file__, GROUPS, STAGES, parameters)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a config file into an empty working directory; returns its name."""
    monkeypatch.chdir(tmp_path)
    def _write(text, name='c.py'):
        (tmp_path / name).write_text(text)
        return name
    return _write


def test_keys_are_the_public_plain_globals_and_those_of_groups_stages_and_the_equation():
    plain = {k: v for k, v in DEFAULTS.items() if k not in ('_private', 'math', 'helper', '__doc__')}
    assert resolve() == {**plain, 'lambda_field': 1., 'num_queries': 0, 'early_stage': {}, 'late_stage': {},
                         'nu': None}


@pytest.mark.parametrize('arg, key, expected', [
    ('--learning_rate=1', 'learning_rate', 1.),
    ('--learning-rate=1e-3', 'learning_rate', 1e-3),
    ('--batch_size=1e4', 'batch_size', 10000),
    ('--batch_size=9007199254740993', 'batch_size', 2**53 + 1),  # a float would round it
    ('--memory_gb=-1e9', 'memory_gb', -1e9),  # negative, as its default is
    ('--wandb_log=TRUE', 'wandb_log', True),
    ('--wandb_log=False', 'wandb_log', False),
    ('--wandb_log=1', 'wandb_log', True),
    ('--out_dir=123', 'out_dir', '123'),
    ('--out_dir=', 'out_dir', ''),
    ('--out_dir=a=b', 'out_dir', 'a=b'),
    ('--out_dir=None', 'out_dir', 'None'),
    ('--depths=2,4,2', 'depths', (2, 4, 2)),
    ('--depths=(2, 4, 2)', 'depths', (2, 4, 2)),
    ('--depths=[2,4,2]', 'depths', (2, 4, 2)),
    ('--depths=2', 'depths', (2,)),
    ('--depths=2,', 'depths', (2,)),
    ('--depths=1e1,2', 'depths', (10, 2)),
    ('--betas=1,.95', 'betas', (1., .95)),
    ('--stages=operator,other', 'stages', ('operator', 'other')),
    ('--stages=["operator", \'other\']', 'stages', ('operator', 'other')),
    ('--stages=', 'stages', ()),
    ('--sizes=1,2.5,word,none', 'sizes', (1, 2.5, 'word', None)),
    ('--sizes=(1, (2, 3))', 'sizes', (1, (2, 3))),
    ('--lambda_field=0', 'lambda_field', 0.),
    ('--num-queries=8', 'num_queries', 8),
    ('--nu=1e-2', 'nu', .01),
    ('--nu=.01,.001', 'nu', (.01, .001)),
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


@pytest.mark.parametrize('arg, part', [
    ('--learning_rat=1', "did you mean 'learning_rate'?"),
    ('--LEARNING_RATE=1', "did you mean 'learning_rate'?"),
    ('--lambda_fiel=1', "did you mean 'lambda_field'?"), ('--zzz=1', '--help'),
    ('--_private=1', "'_private'"),
    ('--beta=1', "unknown key 'beta'"),  # of another equation
    ('--nu', '--nu=value'), ('--n', "'n'"),
    ('--batch_size=1.5', 'whole'), ('--batch_size=ten', 'whole'), ('--batch_size=', 'whole'),
    ('--batch_size=-1', 'negative'), ('--lambda_field=-.1', 'negative'), ('--depths=1,-1', 'negative'),
    ('--batch_size=inf', 'finite'), ('--learning_rate=nan', 'finite'), ('--betas=.9,nan', 'finite'),
    ('--learning_rate=true', 'number'), ('--lam=1e999', 'finite'), ('--lam={1, 2}', 'number, text'),
    ('--wandb_log=yes', 'true or false'), ('--depths=2,,2', 'whole'), ('--depths=2,1.5', 'whole'),
    ('--batch_size', '--batch_size=value'), ('--wandb-log', '--wandb_log=true'), ('-x', '--key=value'),
    ('--', '--key=value'), ('batch_size=3', '--batch_size=3'),
    ('--early_stage=3', '--early_stage.max_iters=value'),
    ('--early_stage.batch_siz=3', "did you mean 'early_stage.batch_size'?"),
    ('--decoder_stag.batch_size=3', "did you mean 'early_stage"),
    ('--early_stage.hidden_dim=3', '--hidden_dim'),  # not a key that the stage may have
    ('--early_stage.batch_size', '--early_stage.batch_size=value'), ('--early_stage.batch_size=1.5', 'whole'),
    ('--batch_size.depths=3', "'batch_size'"),
])
def test_command_line_refused(arg, part):
    assert part in refused(resolve, arg)


def test_what_replaced_a_key_is_said():
    for name, instead in RENAMED.items():
        message = refused(resolve, f'--{name}=1')
        assert 'removed' in message and instead in message
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--stepper')
    assert parse_flags(parser, ['--stepper', 'x']).stepper == 'x'
    assert 'stepper' in refused(parse_flags, parser, ['--by', 'x'])
    with pytest.raises(SystemExit):
        parse_flags(parser, ['--zzz'])


@pytest.mark.parametrize('text, key, expected', [
    ('learning_rate = 1', 'learning_rate', 1.),
    ("learning_rate = '1e-3'", 'learning_rate', 1e-3),
    ('batch_size = 1e4', 'batch_size', 10000),
    ('latent_dim = 64\nhidden_dim = 2 * latent_dim', 'hidden_dim', 128),
    ('import os.path as p, math\nfrom math import sqrt\nclass C: pass\ndef f(): return 4\n'
     '_n = int(math.sqrt(f()))\nbatch_size = _n', 'batch_size', 2),
    ('depths = [2, 2]', 'depths', (2, 2)),
    ("stages = ('other')", 'stages', ('other',)),  # the forgotten comma
    ("stages += ('other',)", 'stages', ('operator', 'other')),
    ('compile = True', 'compile', 'true'),
    ('lambda_field = 2', 'lambda_field', 2.),
    ('nu = .1', 'nu', .1),
    ("dataset = 'advection'\nbeta = 1", 'beta', 1),
    ("lam = '123'", 'lam', '123'),
    ('lam = (1, 2)', 'lam', (1, 2)),
    ('del batch_size', 'batch_size', 12),
    ('early_stage = dict(batch_size=1e1, depths=[3])', 'early_stage', {'batch_size': 10, 'depths': (3,)}),
    ("early_stage['batch_size'] = 10", 'early_stage', {'batch_size': 10}),
])
def test_config_file(write, text, key, expected):
    value = resolve(write(text))[key]
    assert value == expected and type(value) is type(expected)
    assert DEFAULTS['stages'] == ('operator',)


@pytest.mark.parametrize('text, place, part', [
    ('batch_size = 3\nlearning_rat = 1', 'c.py:2', "did you mean 'learning_rate'?"),
    ('for i in range(3): pass', 'c.py:1', 'begin with _'),
    ('beta = 1', 'c.py:1', "'beta'"), ("dataset = 'advection'\nnu = 1", 'c.py:2', "'nu'"),
    ('\nbatch_size = 1.5', 'c.py:2', 'whole'), ('batch_size = True', 'c.py:1', 'whole'),
    ('wandb_log = 2', 'c.py:1', 'true or false'), ('out_dir = []', 'c.py:1', 'text, in quotes'),
    ('depths = 2', 'c.py:1', 'tuple'), ("learning_rate = float('nan')", 'c.py:1', 'finite'),
    ('lam = object()', 'c.py:1', 'number, text'),
    ('\nearly_stage = dict(batch_siz=3)', 'c.py:2', "did you mean 'early_stage.batch_size'?"),
    ('early_stage = {1: 2}', 'c.py:1', "'early_stage.1'"), ('early_stage = 3', 'c.py:1', 'dict'),
    ('batch_size = 3\nlearning_rate = = 1', 'c.py:2', 'SyntaxError: invalid syntax'),
    ('return', 'c.py:1', 'SyntaxError'), ('\n1 / 0', 'c.py:2', 'ZeroDivisionError: division by zero'),
    ('def f():\n    raise KeyError\nf()', 'c.py:2', 'KeyError'),
    ("raise ValueError('two\\nlines')", 'c.py:1', 'ValueError: two lines'),
    ('exit()', 'c.py:1', 'SystemExit'),
    ('import no_such_module', 'c.py:1', 'ModuleNotFoundError'), ('\0', 'c.py:1', ''),
])
def test_config_file_refused(write, text, place, part):
    message = refused(resolve, write(text))
    assert place in message and part in message


def test_files_in_order_then_the_command_line(write):
    a = write('batch_size = 1\nlatent_dim = 8\nearly_stage = dict(batch_size=7, depths=[3])', 'a.py')
    b = write('batch_size = 2 * batch_size\nhidden_dim = 4 * latent_dim\nearly_stage = dict(depths=(4, 4))',
              'b.py')
    config = resolve('--latent_dim=9', a, b, '--hidden_dim=1', '--hidden_dim=7',
                     '--early-stage.learning-rate=1')
    assert (config['batch_size'], config['latent_dim'], config['hidden_dim']) == (2, 9, 7)
    assert config['early_stage'] == {'batch_size': 7, 'depths': (4, 4), 'learning_rate': 1.}
    assert config['learning_rate'] == 1e-3                           # of the stage alone


def test_missing_file_and_directory(write, tmp_path):
    (tmp_path / 'config').mkdir()
    write('', 'config/burgers_cpu.py')
    assert "did you mean 'config/burgers_cpu.py'?" in refused(resolve, 'config/burger_cpu.py')
    assert "did you mean 'config/burgers_cpu.py'?" in refused(resolve, 'burgers_cpu.py')
    assert "no config file 'zz/qq.py': check the path" in refused(resolve, 'zz/qq.py')
    assert "'config' is a directory" in refused(resolve, 'config')


def test_a_parameter_named_as_a_key_is_refused():
    def more(dataset):
        return {'batch_size': None}
    assert "'batch_size'" in refused(configure, DEFAULTS, [], __file__, GROUPS, STAGES, more)


def test_one_of_several():
    assert among('optimizer', 'MUON', ('muon', 'adamw')) == 'muon'
    assert 'muon, adamw' in refused(among, 'optimizer', 'sgd', ('muon', 'adamw'))
    assert str(UserError('a\nb')) == 'a b' and issubclass(UserError, ValueError)


# -----------------------------------------------------------------------------
# what a script says of its keys


def test_keys_sections_and_stars(tmp_path):
    path = str(tmp_path / 'keys.py')
    with open(path, 'w') as file:
        file.write('"""Text."""\nimport os\n# run (a note)\na = 1  # one *\nb = (2., 3.)\n# model\n'
                   "c = 'x'  # text\nd = os.sep  # no plain value\n# another\ne = -1.  # minus *\n")
    assert read_keys(path) == {'a': (1, 'one *'), 'b': ((2., 3.), ''), 'c': ('x', 'text'),
                               'e': (-1., 'minus *')}
    assert section(path, 'run') == ['a', 'b'] and section(path, 'model') == ['c', 'd']
    assert resumable(path) == {'a', 'e'}


def test_help(tmp_path, capsys):
    """Keys under their headings, then those of the groups, of the equations and of the stages."""
    path = tmp_path / 'toy.py'
    path.write_text("# data\nout_dir = 'out' # where the run goes\nurl = 'a#b' # no comment in the text\n"
                    '# a stale comment\n\nbatch_size = 12\n# optimiser\ndepths = (1, 2) # blocks\n')
    defaults = {'__doc__': 'Toy script.', 'out_dir': 'out', 'url': 'a#b', 'batch_size': 12, 'depths': (1, 2)}
    with pytest.raises(SystemExit) as caught:
        configure(defaults, ['nonsense.py', '--help'], str(path), GROUPS, STAGES, parameters)
    assert caught.value.code == 0
    lines = [' '.join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == 'Toy script.'
    for heading, row in (('data', '--out_dir=out where the run goes'), ('optimiser', '--depths=1,2 blocks'),
                         ('losses', '--lambda_field=1.0 error of fields'),
                         ('points', '--num_queries=0 points')):
        assert lines[lines.index(heading) + 1] == row
    assert "--url='a#b' no comment in the text" in lines and '--batch_size=12' in lines
    assert '--nu=VALUE' in lines and lines[-2:] == ['--early_stage.KEY=VALUE', '--late_stage.KEY=VALUE']


# -----------------------------------------------------------------------------
# the process: exit codes and streams


SCRIPT = '''"""Toy script."""
import sys
from runtime.configurator import UserError, configure, one_line_errors
out_dir = 'out' # where the run goes
batch_size = 12
one_line_errors(); one_line_errors()
globals().update(configure(globals(), sys.argv[1:], __file__))
class OutOfMemoryError(RuntimeError): pass
if out_dir == 'user': raise UserError('first\\nsecond')
if out_dir == 'oom': raise OutOfMemoryError('CUDA out of memory. Tried 2.00 GiB. GPU 0 has 1.')
if out_dir == 'int': raise KeyboardInterrupt
if out_dir == 'pipe': raise BrokenPipeError
if out_dir == 'é': print(out_dir); sys.exit()
if out_dir == 'bug': raise RuntimeError('bug')
print(batch_size)
'''


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp('script') / 'toy.py'
    path.write_text(SCRIPT, encoding='utf-8')
    env = dict(os.environ, PYTHONPATH=ROOT, PYTHONIOENCODING='ascii')
    def _run(*argv, stdout=subprocess.PIPE):
        p = subprocess.run([sys.executable, str(path), *argv], env=env, stdout=stdout, stderr=subprocess.PIPE,
                           text=True, timeout=600)
        return p.returncode, p.stdout, p.stderr
    return _run


@pytest.mark.parametrize('arg, code, out, err', [
    ('--batch-size=1e2', 0, '100\n', ''),
    ('--batch_siz=1', 1, '', "error: unknown key 'batch_siz', did you mean 'batch_size'? (command line)\n"),
    ('--out_dir=user', 1, '', 'error: first second\n'),
    ('--out_dir=oom', 1, '', 'error: CUDA out of memory. Tried 2.00 GiB: lower batch_size, raise '
     'accumulation, set checkpointing=True, in that order\n'),
    ('--out_dir=int', 130, '', 'stopped by Ctrl-C\n'),
    ('--out_dir=pipe', 1, '', ''),
])
def test_exit_codes(run, arg, code, out, err):
    assert run(arg) == (code, out, err)


def test_a_bug_keeps_its_traceback(run):
    code, out, err = run('--out_dir=bug')
    assert code == 1 and err.startswith('Traceback') and err.endswith('RuntimeError: bug\n')


def test_a_letter_without_a_code_is_printed_as_its_number(run):
    code, out, err = run('--out_dir=é')
    assert (code, out, err) == (0, '\\xe9\n', '')


def test_help_into_a_closed_pipe(run):
    read, write = os.pipe()
    os.close(read)
    assert run('--help', stdout=write)[2] == ''
    os.close(write)


def test_ctrl_c_leaves_130(tmp_path):
    (tmp_path / 'nap.py').write_text(
        'import time\nfrom runtime.configurator import one_line_errors\none_line_errors()\n'
        "print('up', flush=True)\ntime.sleep(600)\n")
    # a process in the background ignores SIGINT unless it is told otherwise
    p = subprocess.Popen([sys.executable, str(tmp_path / 'nap.py')], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=ROOT),
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    p.stdout.readline()
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=600)
    assert (p.returncode, err) == (130, b'stopped by Ctrl-C\n')


# --- flags -------------------------------------------------------------------

@pytest.mark.parametrize('words, points, out', [
    (['--points', '-1e-3', '.5'], [-.001, .5], None), (['--points=-1E-3'], [-.001], None),
    (['--points', '-2.', '-.5e+1', '-1'], [-2., -5., -1.], None), (['--out', '~/a'], None, 'HOME/a'),
    (['--out=~/a=b'], None, 'HOME/a=b'), (['--out', 'a~'], None, 'a~')])
def test_flags(monkeypatch, words, points, out):
    """Negative numbers in every notation, and ~ where the shell leaves it."""
    monkeypatch.setenv('HOME', 'HOME')
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--points', type=float, nargs='+')
    parser.add_argument('--out')
    args = parse_flags(parser, words)
    assert (args.points, args.out) == (points, out)


def test_a_home_in_a_key(write, monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    assert resolve(write("out_dir = '~/a'"))['out_dir'] == '/home/me/a'
    assert resolve('--out_dir=~/a,b,~/c')['out_dir'] == '/home/me/a,b,/home/me/c'      # several, as data_path


def test_no_other_module_stands_for_our_configs(write, tmp_path, monkeypatch):
    """Whether it is imported already, or comes first on the path; both stay as they are for others."""
    theirs = types.ModuleType('config')
    monkeypatch.setitem(sys.modules, 'config', theirs)
    monkeypatch.syspath_prepend(str(tmp_path))
    write('1 / 0', 'config.py')
    path = write('from config import burgers_64_u as _own\nlatent_dim = _own.latent_dim')
    assert resolve(path)['latent_dim'] == 64
    assert sys.modules['config'] is theirs and 'config.burgers_64_u' not in sys.modules
