"""
Config files and --key=value over the globals of a script, and user errors in one line.

    $ python train.py config/burgers_cpu.py --learning-rate=3e-4 --depths=2,4,2

A script states its defaults as plain module globals, one a line with a trailing comment, then:

    from runtime.configurator import configure, one_line_errors
    one_line_errors()
    config = configure(globals(), sys.argv[1:], __file__, choices={'device': ('auto', 'cpu')})
    globals().update(config)

A config file is Python that assigns those names. It sees the values so far, so it may say
`hidden_dim = 2 * latent_dim`; its own helpers begin with `_`. Files apply in the order given,
then every --key=value, wherever it stands. Types follow the default. Nothing typed on the
command line is executed; a misspelt key or a bad value is a UserError before any work.

A dict holds the settings of one stage, which override plain keys of the script while it trains:

    decoder_stage = {'max_iters': 1000}            # the script's default
    decoder_stage = dict(learning_rate=3e-4)       # in a config file: added to the default
    --decoder_stage.max_iters=500                  # on the command line
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

_PLAIN_TYPES = (int, float, bool, str, tuple, list, type(None))
# the disk is full, or not ours to write
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


# --- errors ------------------------------------------------------------------

class UserError(ValueError):
    """What the user can mend. Its text is one line: what, where, how to fix."""

    def __str__(self):
        return ' '.join(super().__str__().splitlines())


def one_line_errors():
    """Print user errors and out of memory as one `error: ...` line; exit status 1, no traceback."""
    sys.excepthook = _excepthook


def say(text):
    """Print a line at once. A closed pipe (`| head`), a lost terminal or a full disk under the
    redirected output must not stop a long run: the rest goes nowhere."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _excepthook(kind, error, trace):
    if issubclass(kind, UserError):
        print(f'error: {error}', file=sys.stderr)
    elif _is_out_of_memory(kind, error):
        sentences = ' '.join(str(error).split()).split('. ')
        what = '. '.join(sentences[:2]).rstrip('.')
        print(f'error: {what}: lower batch_size, raise accumulation, set checkpointing=True, in that order',
              file=sys.stderr)
    elif issubclass(kind, KeyboardInterrupt):
        sys.exit(130)
    elif issubclass(kind, BrokenPipeError):  # `| head`; the flush at exit must not raise it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    elif issubclass(kind, OSError) and error.errno in _DISK:
        what = error.filename or 'a file'
        print(f'error: {what}: {os.strerror(error.errno)}: free some space, or choose another folder',
              file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _is_out_of_memory(kind, error):
    """NumPy says it, torch on a GPU (recognised by name, to do without torch), or torch on a CPU."""
    return (issubclass(kind, MemoryError)
            or kind.__name__ == 'OutOfMemoryError'
            or "can't allocate memory" in str(error))


def _unknown(name, keys, where, prefix=''):
    """The error for a name that is none of `keys`; both are shown after `prefix`."""
    spelt = {key.lower(): key for key in keys}
    close = difflib.get_close_matches(str(name).lower(), spelt, 1)
    shown = repr(f'{prefix}{name}')
    if close:
        meant = repr(prefix + spelt[close[0]])
        return UserError(f'unknown key {shown}, did you mean {meant}? ({where})')
    return UserError(f'unknown key {shown} ({where}): --help lists the keys, '
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
        raise ValueError('must be a whole number' if whole else 'must be a number')
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
    if not allowed:
        return value
    for choice in allowed:
        if _folded(choice) == _folded(value):
            return choice
    raise ValueError('is not one of ' + ', '.join(map(str, allowed)))


def _folded(value):
    return value.lower() if isinstance(value, str) else value


def _shown(value):
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + '...'


def _resolve(name, value, default, choices, where, raw=False):
    """The value of `name`, a key or stage.key, in the type of `default`."""
    allowed = choices.get(name.rpartition('.')[2], ())
    try:
        return _typed(value, default, allowed, raw)
    except ValueError as e:
        raise UserError(f'{name}={_shown(value)} {e} ({where})') from None


def _resolve_stage(stage, settings, current, plain, choices, where):
    """The `current` settings of a stage with the given ones added, in the types of the plain keys."""
    if not isinstance(settings, dict):
        raise UserError(f'{stage}={_shown(settings)} must be a dict, like dict(max_iters=1000) ({where})')
    merged = dict(current)
    for key, value in settings.items():
        if key not in plain:
            raise _unknown(key, plain, where, f'{stage}.')
        merged[key] = _resolve(f'{stage}.{key}', value, plain[key], choices, where)
    return merged


def _check_bounds(config, plain, bounds):
    """Raise UserError where a number is outside of its bounds; one without bounds must be positive."""
    values = {}
    for name, value in config.items():
        if name in plain:
            values[name] = value
        else:
            values.update({f'{name}.{key}': inner for key, inner in value.items()})
    for name, value in values.items():
        key = name.rpartition('.')[2]
        if key in bounds:
            low, high = bounds[key]
            items = value if isinstance(value, (tuple, list)) else [value]
            _check_between(name, value, items, low, high)
        elif type(plain[key]) in (int, float) and value <= 0:
            raise UserError(f'{name}={value} must be positive')


def _check_between(name, value, items, low, high):
    for item in items:
        if type(item) not in (int, float):
            continue
        if low is not None and item < low:
            raise UserError(f'{name}={value} must be at least {low}')
        if high is not None and item >= high:
            raise UserError(f'{name}={value} must be below {high}')


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


def _apply(path, current, plain, choices):
    """The `current` values after one config file; `plain` holds the defaults of the plain keys."""
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
    where = _lines_of_names(tree, path)
    for name, value in space.items():  # all names first: a typo explains more than a bad value
        helper = name.startswith('_') or callable(value) or isinstance(value, types.ModuleType)
        if name not in current and not helper:
            raise _unknown(name, current, where.get(name, path))
    new = dict(current)
    for name in current:
        value = space.get(name, given[name])  # the file may `del` it
        if value is given[name] and given[name] == current[name]:
            continue  # untouched
        place = where.get(name, path)
        if name in plain:
            new[name] = _resolve(name, value, plain[name], choices, place)
        else:
            new[name] = _resolve_stage(name, value, current[name], plain, choices, place)
    return new


def _lines_of_names(tree, path):
    """Where a config file last assigns each name: name -> 'path:line'."""
    stores = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            stores.append(node)
    stores.sort(key=lambda node: node.lineno)
    return {node.id: f'{path}:{node.lineno}' for node in stores}


# --- --help ------------------------------------------------------------------

def _comments(source):
    """What a script says of its keys: name or stage.key -> (headings above it, trailing comment)."""
    with open(source, encoding='utf-8') as f:
        text = f.read()
    notes = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            notes[token.start[0]] = token.string.strip('#-= ')
    assigned = {n.lineno: n for n in ast.parse(text).body if isinstance(n, ast.Assign)}
    found = {}
    headings = []  # (line, text)
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith('#') and number in notes:
            headings.append((line, notes[number]))
        elif not line.strip():  # only a `# ---` heading reaches over a blank line
            if not headings or not headings[0][0].startswith('# ---'):
                headings = []
        else:
            if number in assigned:
                texts = [text for _, text in headings if text]
                found = {**_comments_of(assigned[number], texts, notes), **found}
            headings = []
    return found


def _comments_of(node, headings, notes):
    """What `_comments` finds at one assignment; a setting of a stage has its comment on its own line."""
    found = {}
    for target in node.targets:
        if not isinstance(target, ast.Name):
            continue
        found[target.id] = (headings, notes.get(node.lineno, ''))
        settings = node.value.keys if isinstance(node.value, ast.Dict) else []
        for key in settings:
            if isinstance(key, ast.Constant) and key.lineno > node.lineno:
                found[f'{target.id}.{key.value}'] = ([], notes.get(key.lineno, ''))
    return found


def _help_row(name, value, note, allowed=()):
    shown = ','.join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    if any(str(choice) not in note for choice in allowed):
        note = f'{note} ({", ".join(map(str, allowed))})'
    option = f'  --{name}={shlex.quote(shown)}'
    return f'{option:<36}  {note.strip()}'.rstrip()


def _help(keys, source, choices):
    """Every key, its default and its comment, under the headings found in the script."""
    found = _comments(source)
    own = {name: value for name, value in keys.items() if name in found}
    imported = {name: value for name, value in keys.items() if name not in found and value is not None}
    of_equations = [name for name, value in keys.items() if name not in found and value is None]
    rows = []
    for name, value in {**own, **imported}.items():
        headings, note = found.get(name, ([], ''))
        rows += [f'\n{heading}' for heading in headings]
        if isinstance(value, dict):
            rows.append(_help_row(f'{name}.KEY', 'VALUE', note))
            for key, inner in value.items():
                _, note = found.get(f'{name}.{key}', ([], ''))
                rows.append(_help_row(f'{name}.{key}', inner, note, choices.get(key, ())))
        else:
            rows.append(_help_row(name, value, note, choices.get(name, ())))
    if of_equations:
        rows.append('\nparameters of the equations (default: those of the entry)')
        rows += [_help_row(name, None, '', choices.get(name, ())) for name in of_equations]
    return '\n'.join(rows)


# --- the one call ------------------------------------------------------------

def _option(arg, plain, stages, choices):
    """The name, key or stage.key, and the value of one --name=value."""
    name, equals, text = arg[2:].partition('=')
    name = name.replace('-', '_')
    stage, _, key = name.rpartition('.')
    if not arg.startswith('--') or not name:
        raise UserError(f'cannot read {arg!r} (command line): write --key=value')
    if name in stages:
        example = next(iter(stages[name]), 'max_iters')
        raise UserError(f'--{name} holds several settings (command line): write --{name}.{example}=value')
    if stage in stages and key not in plain:
        raise _unknown(key, plain, 'command line', f'{stage}.')
    if stage not in stages and name not in plain:
        dotted = [f'{known}.{inner}' for known in stages for inner in plain]
        raise _unknown(name, [*plain, *dotted], 'command line')
    if not equals:
        example = 'true' if isinstance(plain[key], bool) else 'value'
        raise UserError(f'--{name} has no value (command line): write --{name}={example}')
    return name, _resolve(name, text, plain[key], choices, 'command line', raw=True)


def configure(defaults, argv, source, choices={}, bounds={}):
    """
    The resolved keys of a script, for its `globals().update(...)`.

    defaults: globals() of the script; its public numbers, texts, bools, tuples, lists and Nones are the
        plain keys, its public dicts of plain keys (in lower case) the settings of stages. Keys that are
        added to it with the value None are listed last by --help, as parameters of the equations.
    argv: sys.argv[1:]. source: the script's path, for --help, which exits 0.
    choices: key -> allowed values; for a tuple or list, of its elements.
    bounds: key -> (low, high), either of them None; a number (in a tuple, each) must be at least low
        and below high. A number whose key is not in bounds must be positive.

    Raises UserError.
    """
    public = {name: value for name, value in defaults.items() if not name.startswith('_')}
    plain = {name: value for name, value in public.items() if type(value) in _PLAIN_TYPES}
    stages = {}
    for name, value in public.items():
        if name.islower() and type(value) is dict:
            stages[name] = _resolve_stage(name, value, {}, plain, choices, source)
    merged = {**plain, **stages}
    keys = {name: merged[name] for name in public if name in merged}  # in the order of the script
    if '--help' in argv or '-h' in argv:
        doc = (defaults.get('__doc__') or '').strip()
        print(f'{doc}\n\nKeys, defaults:\n{_help(keys, source, choices)}', flush=True)
        sys.exit(0)
    options = [_option(arg, plain, stages, choices) for arg in argv if arg.startswith('-')]
    config = keys
    for arg in argv:
        if not arg.startswith('-'):
            config = _apply(arg, config, plain, choices)
    config = dict(config)
    for name, value in options:
        stage, _, key = name.rpartition('.')
        if stage:
            config[stage] = {**config[stage], key: value}
        else:
            config[name] = value
    _check_bounds(config, plain, bounds)
    return config
