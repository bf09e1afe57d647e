"""
Meshes of other programs to files of the layout 'points' (points/files.py), and back. It needs the package meshio.

    python data.py mesh a.xdmf b.xdmf --pde obstacles --re 100 --out points.h5       # a trajectory each
    python data.py mesh 'a/*.vtu' 'b/*.vtu' --dt .125 --pde obstacles --re 100 --out points.h5
    python data.py mesh points.h5 --row 3 --out row3.xdmf

A trajectory is an XDMF file with times, or a pattern of files with a frame each (VTU, and whatever else meshio
reads), in the order of their names, --dt seconds apart. The fields are point data with the names that the
equation has; --fields says what other names they have: --fields vx=U:0 vy=U:1 p=pressure.
"""
import argparse
import glob
import os

import h5py
import numpy as np

import equations
from files.open import as_file, open_source
from points.files import points_of, write_points
from runtime.configurator import UserError, parse_flags, say
from runtime.paths import output_file
from runtime.progress import counted

CELLS = ('triangle', 'quad')


def meshio():
    try:
        import meshio
    except ImportError as error:
        raise UserError('meshes need the package meshio: pip install meshio') from error
    return meshio


def read_mesh(path, fields, dt=None):
    """
    A trajectory of meshes, (times (T,), points (P, 2 or 3), values (T, P, C), cells or None).

    path: an XDMF file with times, or a pattern of files with a frame each, dt seconds apart. fields: {name of
    the equation: name of the point data, or NAME:I for a component}. Raises UserError where the points change, a
    field is missing, or a file cannot be read.
    """
    try:
        if path.endswith('.xdmf'):
            as_file(path, 'mesh')
            with meshio().xdmf.TimeSeriesReader(path) as reader:
                points, cells = reader.read_points_cells()
                frames = [reader.read_data(k)[:2] for k in range(reader.num_steps)]
            times = [time for time, _ in frames]
            data = [point_data for _, point_data in frames]
        else:
            names = sorted(glob.glob(path))
            if not names:
                raise UserError(f"no file '{path}'")
            if dt is None:
                raise UserError(f"'{path}': --dt says how many seconds lie between the frames")
            meshes = [meshio().read(name) for name in names]
            points = meshes[0].points
            cells = meshes[0].cells
            if any(not np.array_equal(mesh.points, points) for mesh in meshes):
                raise UserError(f"'{path}': the points of the frames differ")
            times = np.arange(len(meshes)) * dt
            data = [mesh.point_data for mesh in meshes]
    except meshio().ReadError as error:
        raise UserError(f"cannot read '{path}': {error}") from error
    values = np.stack([fields_of(path, point_data, fields) for point_data in data])
    kept = [block.data for block in cells if block.type in CELLS]
    return np.asarray(times), points, values, kept[0] if len(kept) == 1 else None


def fields_of(path, point_data, fields):
    """The fields {name: name or NAME:I} of a frame, (P, C)."""
    columns = []
    for key in fields.values():
        name, colon, component = key.partition(':')
        if name not in point_data:
            raise UserError(f"'{path}' has no point data '{name}', but {', '.join(point_data) or 'none'}: "
                            f'--fields {next(iter(fields))}=NAME, or NAME:I for a component')
        column = np.asarray(point_data[name])
        if colon:
            if not component.isdigit() or column.ndim != 2 or int(component) >= column.shape[1]:
                raise UserError(f"'{path}': {name} has the shape {column.shape}, and no component {component}")
            column = column[:, int(component)]
        if column.ndim == 2 and column.shape[1] == 1:
            column = column[:, 0]
        if column.ndim != 1:
            raise UserError(f"'{path}': {name} is a vector: take a component, such as {name}:0")
        columns.append(column)
    return np.stack(columns, -1)


def from_meshes(paths, pde, params, out, fields=None, dt=None):
    """Write the trajectories of `paths`, as read_mesh takes them, to a file of points. params: {'Re': 100.};
    fields: {name: name in the meshes} for those that have another. Raises UserError."""
    entry = equations.entry(pde)
    fields = {name: (fields or {}).get(name, name) for name in entry.fields}
    trajectories = []
    for path in counted('reading meshes', paths):
        times, points, values, cells = read_mesh(path, fields, dt)
        if np.ptp(points[:, entry.axes:], axis=0).any():
            raise UserError(f"'{path}' has points in {points.shape[1]} dimensions, and {pde} has {entry.axes}")
        first = trajectories[0] if trajectories else (times,)
        if len(times) != len(first[0]) or np.abs(times - first[0]).max() > 1e-6 * max(abs(times)):
            raise UserError(f"'{path}' has other times than '{paths[0]}'")
        trajectories.append((times, points[:, :entry.axes], values, cells))
    write_points(out, pde, params, trajectories[0][0], [parts for _, *parts in trajectories])
    try:
        open_source(out, pde)                                        # checks what was written
    except UserError:
        os.remove(out)
        raise


def to_mesh(path, row, out):
    """Write a trajectory of a file of points as XDMF. Raises UserError for a file that has no cells."""
    source = open_source(path, quiet=True)
    if source.layout != 'points' or not 0 <= row < source.n:
        raise UserError(f"'{path}' has no trajectory {row} of points")
    with h5py.File(path) as file:
        points, values = points_of(file, row)
        cells = file.get(f'{row:04d}/cells')
        if cells is None:
            cells = [('vertex', np.arange(len(points))[:, None])]
        else:
            cells = [(CELLS[cells.shape[1] - 3], cells[:])]
    with meshio().xdmf.TimeSeriesWriter(out, data_format='XML') as writer:
        writer.write_points_cells(np.pad(points, ((0, 0), (0, 3 - points.shape[1]))), cells)
        for k, frame in enumerate(values):
            fields = dict(zip(source.fields, frame.T))
            writer.write_data(source.first_time + k * source.dt, point_data=fields)


def mesh_command(argv):
    """The command line `python data.py mesh FILES --pde NAME --out FILE`, and back."""
    keys = equations.parameter_keys()
    parser = argparse.ArgumentParser('data.py mesh', description='Meshes to a file of points, and back.',
                                     allow_abbrev=False)
    parser.add_argument('paths', nargs='+', help='a trajectory each; or a file of points')
    parser.add_argument('--out', required=True, help='the .h5 file to write; or an .xdmf file')
    parser.add_argument('--pde', choices=equations.names(), help='the equation')
    parser.add_argument('--fields', nargs='+', default=[], metavar='FIELD=NAME[:I]', help='names in the meshes')
    parser.add_argument('--dt', type=float, help='seconds between frames that have no times')
    parser.add_argument('--row', type=int, default=0, help='trajectory of a file of points')
    for key in keys:
        parser.add_argument(f'--{key}', type=float, help='parameter of the equation')
    args = parse_flags(parser, argv)
    output_file('--out', args.out)
    if args.out.endswith('.xdmf'):
        to_mesh(args.paths[0], args.row, args.out)
    elif not args.pde:
        raise UserError('--pde names the equation of the meshes')
    else:
        fields = dict(text.partition('=')[::2] for text in args.fields)
        unknown = sorted(set(fields) - set(equations.entry(args.pde).fields))
        if unknown:
            raise UserError(f'--fields {unknown[0]}: {args.pde} has {", ".join(equations.entry(args.pde).fields)}')
        params = equations.parameters(args.pde, {key: getattr(args, key) for key in keys})
        from_meshes(args.paths, args.pde, params, args.out, fields, args.dt)
    say(f'data: wrote {args.out}')
