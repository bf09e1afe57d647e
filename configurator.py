"""
Config files and --key=value over the globals of a script, and user errors in one line.

    $ python train.py config/burgers_cpu.py --learning-rate=3e-4 --depths=2,4,2

A script states its defaults as plain module globals, one a line with a trailing comment, then:

    from configurator import configure, one_line_errors
    one_line_errors()
    config = configure(globals(), sys.argv[1:], __file__, choices={'device': ('auto', 'cpu')})
    globals().update(config)

A config file is Python that assigns those names. It sees the values so far, so it may say
`hidden_dim = 2 * latent_dim`; its own helpers begin with `_`. Files apply in the order given,
then every --key=value, wherever it stands. Types follow the default. Nothing typed on the
command line is executed; a misspelt key or a bad value is a UserError before any work.
"""
import ast
import copy
import difflib
import errno
import glob
import io
import json
import math
import os
import shlex
import sys
import tokenize
import traceback
import types

_KEY_TYPES = (int, float, bool, str, tuple, list, type(None))
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)  # full, or not ours


# --- errors ------------------------------------------------------------------

class UserError(ValueError):
    """What the user can mend. Its text is one line: what, where, how to fix."""

    def __str__(self):
        return ' '.join(super().__str__().splitlines())


def one_line_errors():
    """Print user errors and out of memory as one `error: ...` line; exit status 1, no traceback."""
    sys.excepthook = _excepthook


def say(text):
    """Print a line at once. A closed pipe (`| head`), a lost terminal or a full disk under the redirected output must
    not stop a long run: the rest goes nowhere."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _excepthook(kind, error, trace):
    if issubclass(kind, UserError):
        print(f'error: {error}', file=sys.stderr)
    elif kind.__name__ == 'OutOfMemoryError' or issubclass(kind, MemoryError) or "can't allocate memory" in str(error):
        # torch's on a GPU (by name, to do without torch), numpy's, torch's on a CPU
        what = '. '.join(' '.join(str(error).split()).split('. ')[:2]).rstrip('.')  # two sentences
        print(f'error: {what}: lower batch_size, raise accumulation, set checkpointing=True, '
              'in that order', file=sys.stderr)
    elif issubclass(kind, KeyboardInterrupt):
        sys.exit(130)
    elif issubclass(kind, BrokenPipeError):  # `| head`; the flush at exit must not raise it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    elif issubclass(kind, OSError) and error.errno in _DISK:
        print(f"error: {error.filename or 'a file'}: {os.strerror(error.errno)}: free some space, or choose another "
              'folder', file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _unknown(name, keys, where):
    spelt = {key.lower(): key for key in keys}
    for close in difflib.get_close_matches(name.lower(), spelt, 1):
        return UserError(f'unknown key {name!r}, did you mean {spelt[close]!r}? ({where})')
    return UserError(f'unknown key {name!r} ({where}): --help lists the keys, '
                     "a config file's own helpers begin with _")


# --- values: the text of each ValueError completes `key=value ...` -----------

def _literal(text):
    """The Python literal that `text` is, or `text` itself."""
    if text.strip().lower() in ('none', 'true', 'false'):  # as text, 'false' would count as true
        text = text.strip().title()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _number(value, whole):
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is not None and not math.isfinite(number):
        raise ValueError('must be finite')
    if number is None or (whole and number % 1):
        raise ValueError(f'must be a {"whole " * whole}number')
    try:
        return int(value) if whole else number  # not int(number), rounded above 2**53
    except ValueError:  # the text '1e4'
        return int(number)


def _items(value, default):
    """The elements of a tuple or list, and whether they are still raw text."""
    words = bool(default) and isinstance(default[0], str)  # 1,2 are then the texts '1' and '2'
    literal = _literal(value) if isinstance(value, str) and not words else value
    if isinstance(literal, (tuple, list)):
        return literal, False
    if not isinstance(value, str):
        raise ValueError(f'must be a {type(default).__name__}, like {default!r}')
    text = value.strip()
    if text[:1] + text[-1:] in ('()', '[]'):
        text = text[1:-1]
    items = [item.strip(' \'"') for item in text.split(',')]
    return (items if items[-1] else items[:-1]), True  # a trailing comma, or nothing at all


def _typed(value, default, allowed, raw):
    """`value` in the type of `default` and the spelling of `allowed` (a tuple: its items are)."""
    if isinstance(default, (tuple, list)):
        items, raw = _items(value, default)
        typed = []
        for item in items:
            try:
                typed.append(_typed(item, default[0] if default else None, allowed, raw))
            except ValueError as e:
                raise ValueError(f'has {item!r}, which {e}') from None
        return type(default)(typed)
    if isinstance(default, bool):
        word = str(value).strip().lower()
        if word not in ('true', 'false', '1', '0'):
            raise ValueError('must be true or false')
        value = word in ('true', '1')
    elif isinstance(default, (int, float)):
        value = _number(value, whole=isinstance(default, int))
    elif isinstance(default, str):
        if allowed and isinstance(value, (bool, int, float, type(None))):
            value = str(value)  # compile = True in a file means 'true'
        if not isinstance(value, str):
            raise ValueError('must be text, in quotes')
    else:
        value = _literal(value) if raw else value
        try:
            json.dumps(value, allow_nan=False)  # a checkpoint holds plain JSON types
        except TypeError:
            raise ValueError('must be a number, text, bool, None or a list of these') from None
        except ValueError:
            raise ValueError('must be finite') from None
        if value is None:
            return None
    fold = lambda x: x.lower() if isinstance(x, str) else x
    same = [a for a in allowed if fold(a) == fold(value)]
    if allowed and not same:
        raise ValueError('is not one of ' + ', '.join(map(str, allowed)))
    return same[0] if same else value


def _resolve(key, value, default, choices, where, raw=False):
    try:
        return _typed(value, default, choices.get(key, ()), raw)
    except ValueError as e:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + '...'
        raise UserError(f'{key}={shown} {e} ({where})') from None


# --- config files ------------------------------------------------------------

def _parse(path, keys):
    """The syntax tree of a config file."""
    if os.path.isdir(path):
        raise UserError(f'config file {path!r} is a directory: name a .py file in it')
    if not os.path.exists(path):
        name = path.partition('=')[0].replace('-', '_')
        if '=' in path and name in keys:
            raise UserError(f'no config file {path!r}: to set {name}, write --{path}')
        folder = os.path.join(glob.escape(os.path.dirname(path)), '*.py')
        near = {os.path.basename(f): f for f in glob.glob('config/*.py') + glob.glob(folder)}
        close = difflib.get_close_matches(os.path.basename(path), near, 1)
        hint = f', did you mean {near[close[0]]!r}?' if close else ': check the path'
        raise UserError(f'no config file {path!r}{hint}')
    try:
        with open(path, 'rb') as f:
            return ast.parse(f.read(), path)
    except (OSError, SyntaxError, ValueError) as e:  # ValueError: null bytes, a binary file
        line = getattr(e, 'lineno', None) or 1
        raise UserError(f'{path}:{line}: {type(e).__name__}: {getattr(e, "msg", e)}') from None


def _apply(path, current, defaults, choices):
    """The `current` values after one config file."""
    tree = _parse(path, current)
    given = copy.deepcopy(current)  # the file may append to a list
    space = dict(given, __file__=path, __name__='__config__')
    try:
        exec(compile(tree, path, 'exec', dont_inherit=True), space)
    except (Exception, SystemExit) as e:
        lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == path]
        line = lines[-1] if lines else getattr(e, 'lineno', 1)  # `return` outside a function: none
        text = f'{type(e).__name__}: {getattr(e, "msg", e)}'.removesuffix(': ')
        raise UserError(f'{path}:{line}: {text}') from None
    stores = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    where = {n.id: f'{path}:{n.lineno}' for n in sorted(stores, key=lambda n: n.lineno)}
    for name, value in space.items():  # all names first: a typo explains more than a bad value
        helper = name.startswith('_') or callable(value) or isinstance(value, types.ModuleType)
        if name not in current and not helper:
            raise _unknown(name, current, where.get(name, path))
    new = dict(current)
    for key in current:
        value = space.get(key, given[key])  # the file may `del` it
        if value is not given[key] or given[key] != current[key]:
            new[key] = _resolve(key, value, defaults[key], choices, where.get(key, path))
    return new


# --- --help, and the one call ------------------------------------------------

def _help(keys, source, choices):
    """Every key, its default and its comment, under the headings found in the script."""
    with open(source, encoding='utf-8') as f:
        text = f.read()
    notes = {t.start[0]: t.string.strip('#-= ') for t in
             tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT}
    nodes = [n for n in ast.parse(text).body if isinstance(n, ast.Assign)]
    names = {n.lineno: [t.id for t in n.targets if isinstance(t, ast.Name)] for n in nodes}
    found, heading = {}, []  # found: key -> (headings right above it, comment)
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith('#') and number in notes:
            heading = heading + [(line, notes[number])]
        elif not line.strip():  # only a `# ---` heading reaches over a blank line
            heading = heading if heading and heading[0][0].startswith('# ---') else []
        else:
            for key in names.get(number, []):
                found.setdefault(key, ([h for _, h in heading if h], notes.get(number, '')))
            heading = []
    rows = []
    for key, value in sorted(keys.items(), key=lambda kv: kv[0] not in found):
        heading, note = found.get(key, ([], ''))
        shown = ','.join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
        if any(str(c) not in note for c in choices.get(key, ())):
            note += f' ({", ".join(map(str, choices[key]))})'
        rows += [f'\n{h}' for h in heading]
        rows.append(f'  --{key}={shlex.quote(shown)}'.ljust(36) + f'  {note.strip()}')
    return '\n'.join(row.rstrip() for row in rows)


def configure(defaults, argv, source, choices={}):
    """
    The resolved keys of a script, for its `globals().update(...)`.

    defaults: globals() of the script; its public numbers, texts, bools, tuples, lists and Nones
        are the keys. argv: sys.argv[1:]. source: the script's path, for --help, which exits 0.
    choices: key -> allowed values; for a tuple or list, of its elements. Raises UserError.
    """
    keys = {k: v for k, v in defaults.items() if not k.startswith('_') and type(v) in _KEY_TYPES}
    if '--help' in argv or '-h' in argv:
        doc = (defaults.get('__doc__') or '').strip()
        print(f'{doc}\n\nKeys, defaults:\n{_help(keys, source, choices)}', flush=True)
        sys.exit(0)
    files, options = [], {}
    for arg in argv:
        name, equals, text = arg[2:].partition('=')
        name = name.replace('-', '_')
        if not arg.startswith('-'):
            files.append(arg)
        elif not arg.startswith('--') or not name:
            raise UserError(f'cannot read {arg!r} (command line): write --key=value')
        elif name not in keys:
            raise _unknown(name, keys, 'command line')
        elif not equals:
            example = 'true' if isinstance(keys[name], bool) else 'value'
            raise UserError(f'--{name} has no value (command line): write --{name}={example}')
        else:
            options[name] = _resolve(name, text, keys[name], choices, 'command line', raw=True)
    config = keys
    for path in files:
        config = _apply(path, config, keys, choices)
    return {**config, **options}
