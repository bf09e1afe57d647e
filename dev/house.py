"""
How much of the project a reader must read, measured: python -m dev.house
"""
import ast
import glob
import io
import os
import subprocess
import sys
import tempfile
import tokenize

from evaluation.speed import Training
from runtime.configurator import read_keys
from runtime.extensions import FOLDERS, HERE

FIVE = ('train.py', 'losses.py', 'model.py', 'data.py', 'grids.py')          # a training step
FSTRING = getattr(tokenize, 'FSTRING_START', tokenize.STRING)
CODE = (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING, FSTRING)
RUN_AND_LIST = """
import os, runpy, sys
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name='__main__')
print(*(getattr(module, '__file__', '') for module in sys.modules.values()), sep='\\n')
"""


def tokens_a_line(text):
    """Tokens of code / lines that have any. Comments and docstrings are no code."""
    count = 0
    lines = set()
    logical = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in CODE:
            logical.append(token)
        elif token.type == tokenize.NEWLINE:
            if [t.type for t in logical] != [tokenize.STRING]:       # a text alone is a docstring
                count += len(logical)
                lines.update(row for t in logical for row in range(t.start[0], t.end[0] + 1))
            logical = []
    return count / max(1, len(lines))


def imports(text, modules):
    """The modules of the project that a file imports, ({at the top}, {in functions and under an if})."""
    tree = ast.parse(text)
    nested = {child for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.If))
              for child in ast.walk(node)}
    found = set(), set()
    for node in ast.walk(tree):
        names = [alias.name for alias in getattr(node, 'names', ()) if isinstance(alias, ast.alias)]
        if isinstance(node, ast.ImportFrom):                         # `from files import open` is files.open
            full = [f'{node.module}.{name}' for name in names]
            names = [name if name in modules else node.module for name in full]
        found[node in nested].update(name for name in names if name in modules)
    return found


def in_circles(graph):
    """Modules that import themselves, by way of others."""
    reach = {name: set(found) for name, found in graph.items()}
    for middle in graph:
        for name in graph:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    return sorted(name for name in graph if name in reach[name])


def own(paths):
    """Those of the files that are the project's, relative to its folder."""
    names = [os.path.relpath(path, HERE) for path in paths if path.startswith(HERE)]
    return sorted({name for name in names if not name.startswith(('.venv', 'tests', 'out'))})


def step_and_modules(folder):
    """(files that a training step enters under default keys, files that a training of the smoke config
    imports)"""
    train = os.path.join(HERE, 'train.py')
    short = [f'--data_dir={folder}', *'--n_trajectories=3 --batch_size=2 --max_iters=1 --device=cpu'.split()]
    subprocess.run([sys.executable, train, *short, f'--out_dir={folder}/a'], check=True, capture_output=True)
    smoke = [train, f'{HERE}/config/burgers_smoke.py', *short, f'--out_dir={folder}/b']
    command = [sys.executable, '-c', RUN_AND_LIST, *smoke]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    training = Training(f'{folder}/a')
    batch = training.batch(2)
    entered = set()

    def note(frame, *_):
        entered.add(frame.f_code.co_filename)

    sys.setprofile(note)
    training.stage(batch, 1.)
    sys.setprofile(None)
    return own(entered - {__file__}), own(done.stdout.splitlines())


def sources():
    """{file: text} of the project without its tests, and {module: file}."""
    paths = own([*glob.glob(f'{HERE}/*.py'), *glob.glob(f'{HERE}/*/*.py')])
    texts = {name: open(os.path.join(HERE, name), encoding='utf-8').read() for name in paths}
    return texts, {name[:-3].removesuffix('/__init__').replace('/', '.'): name for name in texts}


def arrows(texts, modules):
    """(circles of imports at the top of files, those that imports in functions add, scripts that import a
    script)"""
    found = {module: imports(texts[name], modules) for module, name in modules.items()}
    everywhere = {module: top | nested for module, (top, nested) in found.items()}
    circles = in_circles({module: top for module, (top, _) in found.items()})
    late = [module for module in in_circles(everywhere) if module not in circles]
    scripts = ['train', 'eval', 'sample', 'bench']
    scripts += [name for name in modules if name.startswith('dev.') and "__main__'" in texts[modules[name]]]
    pairs = [f'{name}->{other}' for name in scripts for other in scripts if other in everywhere[name]]
    return circles, late, pairs


def main():
    texts, modules = sources()
    circles, late, pairs = arrows(texts, modules)
    lines = {name: text.count('\n') for name, text in texts.items()}
    density = {name: tokens_a_line(text) for name, text in texts.items()}
    densest = max(density, key=density.get)
    keys = [name for name in read_keys(f'{HERE}/train.py') if not name.startswith('_')]
    with tempfile.TemporaryDirectory() as folder:
        entered, imported = step_and_modules(folder)
    of_extensions = [name for name in imported if name.split('/')[0] in FOLDERS]
    rows = {'Python files at the top level': sum('/' not in name for name in texts),
            'lines of model.py': lines['model.py'],
            'lines of train.py': lines['train.py'],
            f'lines of {" ".join(FIVE)}': sum(lines[name] for name in FIVE),
            'keys in train.py': len(keys),
            'files that a training step enters': f'{len(entered)}: {" ".join(entered)}',
            'modules that train.py config/burgers_smoke.py imports': f'{len(imported)}: {" ".join(imported)}',
            '... of extensions': ' '.join(of_extensions) or 'none',
            'circles of imports': ' '.join(circles) or 'none',
            '... by imports in functions': ' '.join(late) or 'none',
            'scripts that import a script': ' '.join(pairs) or 'none',
            'lines of README.md': open(f'{HERE}/README.md', encoding='utf-8').read().count('\n'),
            'tokens per code line of train.py': f'{density["train.py"]:.1f}',
            '... of the densest file': f'{density[densest]:.1f} ({densest})',
            'lines of all code but tests': sum(lines.values())}
    for name, value in rows.items():
        print(f'{name:<56} {value}')


if __name__ == '__main__':
    main()
