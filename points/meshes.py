"""
Meshes of other programs to files of the layout 'points' (points/files.py), and back. It needs the package meshio.

    python data.py mesh a.xdmf b.xdmf --pde obstacles --re 100 --out points.h5       # a trajectory each
    python data.py mesh 'a/*.vtu' 'b/*.vtu' --dt .125 --pde obstacles --re 100 --out points.h5
    python data.py mesh points.h5 --row 3 --out row3.xdmf

A trajectory is an XDMF file with times, or a pattern of files with a frame each (VTU, and whatever else meshio
reads), in the order of the numbers in their names, --dt seconds apart. The fields are point data with the names
that the equation has; --fields tells other names: --fields vx=U:0 vy=U:1 p=pressure. An equation with obstacles
needs the signed distance to the nearest wall as well. Cells are kept if all are triangles or quadrilaterals.
"""
import argparse
import glob
import os
import re

import h5py
import numpy as np

import equations
from files.open import as_file, open_source
from points.files import points_of, write_points
from runtime.configurator import UserError, parse_flags, say
from runtime.paths import output_file
from runtime.progress import counted

CELLS = ('triangle', 'quad')
XDMF = ('.xdmf', '.xmf')


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
    path = os.path.expanduser(path)
    package = meshio()
    try:
        times, points, cells, data = (read_xdmf if path.endswith(XDMF) else read_frames)(package, path, dt)
    except UserError:
        raise
    except (Exception, SystemExit) as error:                         # meshio raises whatever, or ends the program
        raise UserError(f"meshio cannot read '{path}': {error or type(error).__name__}") from error
    values = np.stack([fields_of(path, point_data, fields, len(points)) for point_data in data])
    kept = [block.data for block in cells if block.type in CELLS]
    return np.asarray(times), points, values, kept[0] if len(kept) == 1 else None


def read_xdmf(package, path, dt):
    """Times, points, cells and [{name: point data}] of an XDMF file. It may have a list of frames for each of
    several functions, all at the same times."""
    as_file(path, 'mesh')
    functions = []
    with package.xdmf.TimeSeriesReader(path) as reader:
        points, cells = reader.read_points_cells()
        for grid in reader.domain:
            if grid.get('GridType') != 'Collection':
                continue
            reader.collection = list(grid)
            for reader.mesh_grid in reader.collection:
                if reader.mesh_grid.find('Geometry') is not None:
                    check_same(path, points, reader.read_points_cells()[0])
            functions.append([reader.read_data(k)[:2] for k in range(len(reader.collection))])
    times = [time for time, _ in functions[0]]
    for frames in functions[1:]:
        if [time for time, _ in frames] != times:
            raise UserError(f"'{path}' has functions at different times")
    data = [dict(item for _, point_data in frames for item in point_data.items()) for frames in zip(*functions)]
    return times, points, cells, data


def read_frames(package, path, dt):
    """The same of a pattern of files, in the order of the numbers in their names."""
    names = sorted(glob.glob(path), key=by_number)
    if not names:
        raise UserError(f"no file '{path}'")
    if len(names) == 1:
        raise UserError(f"'{path}' is one frame: name all of a trajectory by a pattern in quotes, such as 'a/*.vtu'")
    if dt is None or not dt > 0:
        raise UserError(f"'{path}': --dt says how many seconds lie between the frames")
    meshes = [package.read(name) for name in names]
    for mesh in meshes:
        check_same(path, meshes[0].points, mesh.points)
    return np.arange(len(meshes)) * dt, meshes[0].points, meshes[0].cells, [mesh.point_data for mesh in meshes]


def by_number(name):
    """A key by which f10 comes after f9."""
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r'(\d+)', name)]


def check_same(path, points, others):
    if points.shape != others.shape or not np.allclose(points, others, atol=1e-6 * np.ptp(points)):
        raise UserError(f"'{path}': the points of the frames differ")


def fields_of(path, point_data, fields, n_point):
    """The fields {name: name or NAME:I} of a frame, (P, C)."""
    columns = []
    for field, key in fields.items():
        name, colon, component = key.partition(':')
        if name not in point_data:
            raise UserError(f"'{path}' has no point data '{name}', but {', '.join(point_data) or 'none'}: "
                            f'--fields {field}=NAME, or {field}=NAME:I for a component (data of cells do not count)')
        column = np.asarray(point_data[name])
        if colon:
            if not component.isdigit() or column.ndim != 2 or int(component) >= column.shape[1]:
                raise UserError(f"'{path}': {name} has the shape {column.shape}, and no component {component}")
            column = column[:, int(component)]
        if column.ndim == 2 and column.shape[1] == 1:
            column = column[:, 0]
        if column.ndim != 1:
            raise UserError(f"'{path}': {name} is a vector: take a component, such as {name}:0")
        if len(column) != n_point:
            raise UserError(f"'{path}': {name} has {len(column)} values for {n_point} points")
        columns.append(column)
    return np.stack(columns, -1)


def from_meshes(paths, pde, params, out, fields=None, dt=None):
    """Write the trajectories of `paths`, as read_mesh takes them, to a new file of points. params: {'Re': 100.};
    fields: {name: name in the meshes} for those that have another. Raises UserError."""
    entry = equations.entry(pde)
    fields = {name: (fields or {}).get(name, name) for name in entry.fields}
    first = read_mesh(paths[0], fields, dt)
    times = first[0]

    def trajectories():                                              # one at a time in memory
        for path in counted('reading meshes', paths):
            own, points, values, cells = first if path == paths[0] else read_mesh(path, fields, dt)
            if len(own) != len(times) or np.abs(own - times).max() > 1e-6 * max(abs(times)):
                raise UserError(f"'{path}' has other times than '{paths[0]}'")
            extent = np.ptp(points, axis=0)
            if extent[entry.axes:].max(initial=0.) > 1e-6 * extent.max():
                raise UserError(f"'{path}' has points in {points.shape[1]} dimensions, and {pde} has {entry.axes}: "
                                'the last ones must be constant')
            yield points[:, :entry.axes], values, cells

    write_points(out, pde, params, times, trajectories())
    try:
        open_source(out, pde)                                        # checks what was written
    except UserError:
        os.remove(out)
        raise


def to_mesh(path, row, out):
    """Write a trajectory of a file of points as XDMF, with its cells if it has any. Raises UserError."""
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
    if not args.out.endswith(('.h5', '.hdf5', '.xdmf')):
        raise UserError(f"--out '{args.out}' must end with .h5 or .hdf5, or with .xdmf to write a mesh")
    if os.path.exists(args.out):                                     # it may hold the values of an XDMF file
        raise UserError(f"'{args.out}' exists: remove it first, or choose another name")
    if args.out.endswith('.xdmf'):
        if len(args.paths) > 1:
            raise UserError('one file of points is written at a time')
        to_mesh(args.paths[0], args.row, args.out)
    elif not args.pde:
        raise UserError('--pde names the equation of the meshes')
    else:
        for key in equations.entry(args.pde).params:
            if getattr(args, key.lower()) is None:
                raise UserError(f'--{key.lower()} is needed: meshes do not tell it')
        fields = dict(text.partition('=')[::2] for text in args.fields)
        unknown = sorted(set(fields) - set(equations.entry(args.pde).fields))
        if unknown:
            raise UserError(f'--fields {unknown[0]}: {args.pde} has {", ".join(equations.entry(args.pde).fields)}')
        params = equations.parameters(args.pde, {key: getattr(args, key) for key in keys})
        from_meshes(args.paths, args.pde, params, args.out, fields, args.dt)
    say(f'data: wrote {args.out}')
