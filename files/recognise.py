"""
Which equation is a data file of?

It is recognised by its layout, its fields, its boundary, its domain and its parameters. The attribute `pde`
of a file that write.py has made names it. Where several equations fit, the name of the file decides, or
else the number of parameters. A guess is told.
"""
import os
import re
from fnmatch import fnmatch

import numpy as np

import equations
from files.layouts import LAYOUTS, spacing
from files.values import as_text, parameter, passed_over, possible_parameters
from runtime.configurator import UserError

OTHER = 'for another equation, add a file to equations/ as docs/RECIPES.md shows'
ENDS = 'its points lie at both ends'
WRITE = "an attribute is written by h5py.File(FILE, 'a').attrs[NAME] = VALUE; "


class Found:
    """What a file says that its equation is recognised by."""

    def __init__(self, path, file, layout, content):
        self.path = path
        self.file = file
        self.layout = layout
        self.content = content
        label = as_text(file.attrs.get('pde', '')).strip()
        self.label = label.lower().replace('_', '-').replace(' ', '-')   # its attribute pde, or ''
        self.names = possible_parameters(file, content.n)
        if content.params is not None:
            self.names = list(content.params)

    def parameter(self, name):
        """A number, None, or a text that says why it is none."""
        if self.content.params is not None:
            return self.content.params.get(name)
        return parameter(self.file, name, self.content.n)

    def unused(self, entry):
        """Names of numbers in the file that are no parameters of an equation."""
        used = [name.lower() for name in entry.params]
        return [name for name in self.names if name.lower() not in used]

    def passed_over(self, entry):
        """Texts on what has the name of a parameter in the file, but is none."""
        texts = []
        for name in entry.params if self.content.params is None else ():
            texts += passed_over(self.file, name, self.content.n)
        return texts


def recognise(found, dataset, named):
    """
    Name of the equation of a file, and a sentence that says what it is guessed by, '' if it is known.

    dataset: the equation asked for, or None. The attribute `pde` of a file decides. Without it, the
    equation asked for is taken if it fits, unless the user has not `named` it and one with more parameters
    fits, too. Else every equation is loaded, and of those that fit (and whose released files have such a
    name, if there are any) the one with the most parameters is taken. Raises UserError where none fits.
    """
    path = found.path
    label = found.label
    name = label or dataset
    if name is not None:
        if name not in equations.names():
            if not named:
                raise UserError(f"'{path}' has the attribute pde='{label}', which is no known equation: "
                                f"--dataset names one of {', '.join(equations.names())}; {OTHER}")
            name = dataset
        entry = equations.entry(name)
        misfit = _misfit(found, entry)
        if not misfit and label not in ('', name):
            return name, f"has the attribute pde='{label}', and is taken for {name} as asked"
        has_more = len(found.names) > len(entry.params)
        if not misfit and (label or named or not has_more):
            return name, ''
        if name == label:
            raise UserError(f"'{path}' has the attribute pde='{label}', but {misfit}")
    entries = equations.entries()
    fitting = [key for key, entry in entries.items() if not _misfit(found, entry)]
    like = [key for key in fitting if _is_named_like(path, entries[key])]
    fitting = like or fitting
    if not fitting:
        raise UserError(_no_equation(found, entries, name))
    most = max(len(entries[key].params) for key in fitting)
    best = [key for key in fitting if len(entries[key].params) == most]
    if name in best:
        return name, ''
    pde = best[0]
    guess = ''
    if len(best) > 1:
        guess = f"is taken for {pde}, and could be {', '.join(best[1:])}"
    elif not most and not like:
        guess = f'is taken for {pde} by its domain and layout alone'
    elif len(fitting) > 1:
        guess = f"has all parameters of {pde}, and could be {', '.join(key for key in fitting if key != pde)}"
    return pde, guess and f'{guess}; --dataset={pde} or an attribute pde says so; {OTHER}'


def check_asked(found, pde, guess, dataset):
    """Raise UserError where a file that is of the equation `pde`, or guessed to be, is not of `dataset`."""
    if dataset not in (None, pde):
        misfit = _misfit(found, equations.entry(dataset))
        says = f"it has all parameters of {pde}, and an attribute pde='{dataset}' says otherwise"
        why = misfit or ('its attribute pde says so' if found.label else says)
        raise UserError(f"'{found.path}' is no file of {dataset} ({why}): it "
                        f'{guess or f"holds {pde}, use --dataset={pde}, or another file"}')


def _no_equation(found, entries, name):
    """The text of the error for a file that fits no equation. name: of the equation asked for, or None."""
    attributes = ', '.join(found.names) or 'none'
    if name is not None:
        return (f"'{found.path}' is no file of {name}, nor of another known equation: "
                f'{_misfit(found, entries[name])} (attributes: {attributes}); {WRITE}{OTHER}')
    content = found.content
    spans = ' x '.join('({:g}, {:g})'.format(*_span(axis)) for axis in content.x)
    fields = ', '.join(content.fields) if content.fields else content.n_fields
    reasons = {}                                         # {why: names of equations that fit otherwise}
    for key, entry in entries.items():
        why = _misfit_of_form(found, entry)
        if not why or why.startswith(ENDS):
            reasons.setdefault(why or _misfit_of_parameters(found, entry), []).append(key)
    near = [f"no file of {', '.join(keys)}, for {why}" for why, keys in reasons.items()]
    return (f"'{found.path}' fits no known equation (layout '{found.layout}', fields: {fields}, cells span "
            f"{spans}, attributes: {attributes}): {'; '.join(near)}{'; ' if near else ''}name one of "
            f"{', '.join(entries)} in an attribute pde of the file; {WRITE}{OTHER}")


def _misfit(found, entry):
    """Why a file cannot be of an equation; '' if it can."""
    return _misfit_of_form(found, entry) or _misfit_of_parameters(found, entry)


def _misfit_of_form(found, entry):
    """The same, parameters aside. With a label, the name of the file does not matter. The first point may lie
    anywhere in its cell."""
    content = found.content
    layout = found.layout
    like = LAYOUTS[layout].like
    if like != 'any' and entry.layout not in (layout, like):
        return f"its layout is '{layout}', not '{entry.layout}'"
    if len(content.x) != entry.axes:
        return f'it has {len(content.x)} axes, not {entry.axes}'
    if content.n_fields not in (None, len(entry.fields)):
        return f'it has {content.n_fields} fields, not {len(entry.fields)}'
    if content.fields not in (None, entry.fields):
        return f"its fields are {', '.join(content.fields)}, not {', '.join(entry.fields)}"
    if content.boundary not in (None, entry.boundary):
        return f"its boundary is '{content.boundary}', not '{entry.boundary}'"
    for word in ('_periodic_', '_trans_'):               # in names of PDEBench's gases; trans: waves leave
        if layout == 'arrays' and not found.label and word in os.path.basename(found.path):
            if entry.periodic != (word == '_periodic_'):
                return f"its name says '{word}', but the boundary of the equation is '{entry.boundary}'"
    for axis, (low, high) in zip(content.x, entry.space):
        dx = spacing(axis)
        tolerance = .02 * (high - low)
        is_long = abs(len(axis) * dx - (high - low)) <= tolerance
        ends = np.abs([axis[0] - low, axis[-1] - high]).max()
        if not is_long and ends < .01 * dx:
            return (f'{ENDS} of ({low:g}, {high:g}), and must be in {len(axis)} equal cells: '
                    'leave the last out on a periodic domain, interpolate to centres between walls')
        if not is_long or not low - tolerance < axis[0] < low + dx + tolerance:
            return 'its cells span ({:g}, {:g}), not ({:g}, {:g})'.format(*_span(axis), low, high)
    return ''


def _misfit_of_parameters(found, entry):
    for name in entry.params:
        value = found.parameter(name)
        if isinstance(value, str):
            return value
        if value is None:
            return f'it has no attribute {name}'
    for name in found.content.params or ():              # a layout that lists its parameters lists them all
        if name not in entry.params and not found.label:
            return f'its parameter {name} is none of the equation'
    return ''


def _is_named_like(path, entry):
    """Does the name of a file look like those of the released ones?"""
    pattern = re.sub(r'\{\w+\}', '*', os.path.basename(entry.file))
    return fnmatch(os.path.basename(path), pattern)


def _span(axis):
    """The two ends of an axis of cell centres."""
    half = spacing(axis) / 2
    return axis[0] - half, axis[-1] + half
