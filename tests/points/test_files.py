"""Files of points and of meshes: points/files.py and points/meshes.py."""
import dataclasses

import h5py
import numpy as np
import pytest
import torch

from conftest import evaluate, refused, train_here
from equations.obstacles import ENTRY
from files.open import open_source, read_rows
from model import load
from points.files import to_grid, write_points
from points.meshes import from_meshes, mesh_command, read_mesh, to_mesh
from points.splines import Scattered, crowded

CENTRE = np.array([.8, .5])
RADIUS = .2
TIMES = [0., .5, 1., 1.5]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Obstacles on 32 x 16 cells."""
    monkeypatch.setattr('equations.obstacles.ENTRY', dataclasses.replace(ENTRY, cells=(32, 16)))


def distance_to_disc(x):
    walls = np.minimum(x[:, 1], 1 - x[:, 1])
    return np.minimum(np.linalg.norm(x - CENTRE, axis=1) - RADIUS, walls)


def fields(x, t, phase=0.):
    """Cubic polynomials around a disc, (P, 4)."""
    a, b = x.T
    vx = b * (1 - b) * (1 + t + phase)
    vy = a ** 2 * b - .3 * t
    p = 2 - a ** 3 + phase * b
    return np.stack([vx, vy, p, distance_to_disc(x)], -1)


def cloud(n=700, seed=0):
    """Random points of the fluid, and the same number near the disc."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, (4 * n, 2)) * [2, 1]
    x = x[distance_to_disc(x) > 0][:n]
    angle = rng.uniform(0, 2 * np.pi, n)
    away = RADIUS + rng.exponential(.01, n)
    return np.concatenate([x, CENTRE + away[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)])


def trajectories(n=3):
    made = []
    for row in range(n):
        x = cloud(seed=row)
        x[0] = [2 + 5e-4, .5]                                        # rounding of a mesh
        made.append((x, np.stack([fields(x, t, .1 * row) for t in TIMES]), None))
    return made


@pytest.fixture
def file(tmp_path):
    path = str(tmp_path / 'points.h5')
    write_points(path, 'obstacles', {'Re': 100.}, TIMES, trajectories())
    return path


def test_points_become_a_grid(file):
    """Cubics come out exactly in the fluid, though half of the points are crowded at a wall."""
    source = open_source(file)
    assert source.layout == 'points' and source.shape == (32, 16) and source.params == {'Re': 100.}
    assert source.dt == pytest.approx(.5) and '1400 to 1400 points' in source.notes[0]
    u = read_rows(source, range(1, 3), time_stride=2)
    assert u.shape == (2, 2, 32, 16, 4)
    x = np.stack(np.meshgrid(*[(np.arange(n) + .5) / 16 for n in (32, 16)], indexing='ij'), -1).reshape(-1, 2)
    true = fields(x, 1., .2).reshape(32, 16, 4)
    inside = u[1, 1, ..., 3] > 0
    wrong = inside != (distance_to_disc(x) > 0).reshape(32, 16)
    assert wrong.sum() <= 2 and 30 < (~inside).sum() < 40
    assert abs(u[1, 1] - true)[inside][:, :3].max() < 5e-3
    assert (u[1, 1][~inside][:, :3] == 0).all() and (u[1, 1][~inside][:, 3] < 0).all()


def test_one_point_of_a_cell_counts():
    x = torch.tensor([[0., .4], [0., .1], [.3, .3], [1., 0.], [1.6, .2]])
    expected = [True, False, True, False, False]
    assert crowded(torch.stack([x, x + 3])).tolist() == [expected, expected]
    assert crowded(x[[1, 1, 3, 1]][None]).tolist() == [[False, True, False, True]]


def test_nodes_that_are_repeated_count_once():
    """As in files of several blocks, where each node stands for each of its cells."""
    x = cloud()[:700]
    u = fields(x, 0.)[None].astype(np.float32)
    once = to_grid(ENTRY, x, u, 'a row')
    again = to_grid(ENTRY, x.repeat(6, 0), u.repeat(6, 1), 'a row')
    inside = (once[0, ..., 3] > .05) & (again[0, ..., 3] > .05)
    assert inside.sum() > 5000 and abs(once - again)[0][inside].max() < .02


def test_a_mesh_around_an_obstacle():
    """Nothing has to be known deep in an obstacle, neither by the file nor by the model."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (12000, 2)) * [2, 1]
    x = x[np.linalg.norm(x - CENTRE, axis=1) > .24]
    u = fields(x, 0.)
    u[:, 3] = np.minimum(np.linalg.norm(x - CENTRE, axis=1) - .24, np.minimum(x[:, 1], 1 - x[:, 1]))
    grid = to_grid(ENTRY, x, u[None].astype(np.float32), 'a row')[0]
    centres = np.stack(np.meshgrid(*[(np.arange(n) + .5) / 64 for n in (128, 64)], indexing='ij'), -1)
    inside = np.linalg.norm(centres - CENTRE, axis=-1) > .25
    true = fields(centres.reshape(-1, 2), 0.).reshape(128, 64, 4)
    assert abs(grid - true)[inside][:, :3].max() < 2e-3
    spline = Scattered((128, 64), 1, False)
    index, weight = spline.stencils(torch.from_numpy(x * 64 - .5).float()[None])
    distance = torch.from_numpy(u[:, 3:]).float()[None]
    assert spline.largest_sum(index, weight) > 400 > 6 * spline.largest_sum(index, weight, distance)
    assert spline.largest_sum(index, weight, -1 - distance).isinf()


def change(path, key, values=None):
    with h5py.File(path, 'a') as file:
        del file[key]
        if values is not None:
            file[key] = values


@pytest.mark.parametrize('key, values, word', [
    ('0001/points', None, "no dataset '0001/points'"),
    ('0001/points', np.full((1400, 2), np.nan), 'not finite'),
    ('0001/points', np.full((1400, 2), 3.), 'leaves the domain'),
    ('0001/points', np.zeros((7, 2)), '0001/values has the shape'),
    ('0001/values', np.zeros((4, 1400, 3)), '0001/values has the shape'),
    ('0001', None, 'expected 0000 .. 0001'),
    ('t-coordinate', np.array([0., 1., 3., 4.]), 't-coordinate is not uniform')])
def test_broken_files(file, key, values, word):
    change(file, key, values)
    message = refused(open_source, file)
    assert file in message and word in message, message


def test_what_a_file_of_points_needs(file, tmp_path):
    with h5py.File(file, 'a') as handle:
        handle.attrs['pde'] = 'soup'
    message = refused(open_source, file)
    assert "attribute pde" in message and "'soup'" in message
    few = [(x[:10], u[:, :10], None) for x, u, _ in trajectories()]
    write_points(file, 'obstacles', {'Re': 100.}, TIMES, few)
    assert '10 points; at least 11' in refused(open_source, file)
    write_points(file, 'obstacles', {'Re': 100.}, TIMES, [(x[:30], u[:, :30], None) for x, u, _ in trajectories()])
    assert '30 points for 512 cells' in open_source(file).doubts[0]
    x = cloud()
    wrong = fields(x, 0.)[None].astype(np.float32)
    wrong[..., 3] = 0.
    assert 'nowhere positive' in refused(to_grid, ENTRY, x, wrong, 'a row')
    depth = dataclasses.replace(ENTRY, positive=('p',))
    assert 'negative values of p' in refused(to_grid, depth, x, wrong - 9., 'a row')
    deep = np.maximum(fields(x, 0.) - [0, 0, 1.5, 0], 0.)[None].astype(np.float32)       # p is 0 in a part
    assert (to_grid(depth, x, deep, 'a row')[..., 2] >= 0).all()
    half = x[x[:, 0] < 1]
    assert 'leave a part' in refused(to_grid, ENTRY, half, fields(half, 0.)[None].astype(np.float32), 'a row')


def test_a_run_on_points(tmp_path, monkeypatch):
    """A file of points is trained on like one of a grid, and scored at its own points."""
    file = str(tmp_path / 'points.h5')
    write_points(file, 'obstacles', {'Re': 100.}, TIMES, trajectories(5))
    train_here(monkeypatch, '--dataset=obstacles', f'--data_path={file}', f'--out_dir={tmp_path}/run',
               '--time_stride=1', '--space_stride=1', '--latent_tokens=4', '--latent_dim=32', '--hidden_dim=16',
               '--depth=1', '--n_head=2', '--max_iters=2', '--eval_interval=2', '--batch_size=2', '--device=cpu')
    [r] = evaluate('--ckpt', f'{tmp_path}/run')
    m = load(f'{tmp_path}/run', encoder='points')
    x, u, _ = trajectories(1)[0]
    u = torch.from_numpy(u).float()[None]
    q = torch.from_numpy(x.clip(0, [2, 1]))
    p = m.rollout(u[:, 0], 3, points=q, grid=q, params={'Re': 100.})
    assert p.isfinite().all()                                        # also at points close to the wall
    error = (p - u[:, 1:]).square().mean(2).sqrt() / u[:, 1:].square().mean(2).sqrt()
    assert r['file_points']['nrmse'] == pytest.approx(float(error[..., :3].mean()), rel=1e-4)


def test_every_sample_has_points_of_its_own(tmp_path, monkeypatch):
    """With encoder='points', a batch is seen at points of the fluid, which differ between samples."""
    file = str(tmp_path / 'points.h5')
    write_points(file, 'obstacles', {'Re': 100.}, TIMES, trajectories(5))
    train_here(monkeypatch, '--dataset=obstacles', f'--data_path={file}', f'--out_dir={tmp_path}/run',
               '--time_stride=1', '--space_stride=1', '--latent_tokens=4', '--latent_dim=32', '--hidden_dim=16',
               '--encoder=points', '--input_points=200', '--encoder_dim=16', '--halo=1', '--lambda_inverse_decoding=1',
               '--inverse_loss_frequency=1', '--depth=1', '--n_head=2', '--max_iters=2', '--eval_interval=2',
               '--batch_size=2', '--device=cpu')
    m = load(f'{tmp_path}/run')
    u = torch.ones(2, 32, 16, 4)
    u[0, 8:14, ..., 3] = -1
    u[1, 20:22, ..., 3] = -1
    x = m.encoder.random_points(300, torch.Generator().manual_seed(0), u)
    assert x.shape == (2, 300, 2)
    cell = (x * 16).floor().long()
    assert all((u[b, cell[b, :, 0], cell[b, :, 1], 3] > 0).all() for b in range(2))
    assert not torch.equal(x[0], x[1])
    assert m.encoder.random_points(9999, torch.Generator(), u).shape == (2, 26 * 16, 2)


# --- meshes --------------------------------------------------------------------------------------

N_FRAMES = 12                                                        # f10 comes after f9
MESH_TIMES = [.5 * k for k in range(N_FRAMES)]
NAMES = {'vx': 'U:0', 'vy': 'U:1'}


def square(n=24):
    """Nodes (P, 3) and triangles of the channel."""
    x = np.stack(np.meshgrid(np.linspace(0, 2, 2 * n), np.linspace(0, 1, n), indexing='ij'), -1).reshape(-1, 2)
    corner = (np.arange(2 * n - 1)[:, None] * n + np.arange(n - 1)).ravel()
    triangles = np.concatenate([np.stack([corner, corner + n, corner + 1], -1),
                                np.stack([corner + n, corner + n + 1, corner + 1], -1)])
    return np.pad(x, ((0, 0), (0, 1))), triangles


def data_of(u):
    return {'U': np.pad(u[:, :2], ((0, 0), (0, 1))), 'p': u[:, 2], 'distance': u[:, 3]}


@pytest.fixture
def mesh(tmp_path, monkeypatch):
    """Folder, nodes, triangles, fields: a triangulated channel as XDMF with times and as a VTU file a frame."""
    meshio = pytest.importorskip('meshio')
    monkeypatch.chdir(tmp_path)                                      # where meshio writes the values of XDMF files
    points, triangles = square()
    cells = [('triangle', triangles)]
    frames = []
    with meshio.xdmf.TimeSeriesWriter(str(tmp_path / 'a.xdmf')) as writer:
        writer.write_points_cells(points, cells)
        for k, t in enumerate(MESH_TIMES):
            u = fields(points[:, :2], t)
            writer.write_data(t, point_data=data_of(u))
            meshio.Mesh(points, cells, point_data=data_of(u)).write(str(tmp_path / f'b{k}.vtu'))
            frames.append(u)
    return tmp_path, points[:, :2], triangles, np.stack(frames)


def test_meshes_and_back(mesh):
    folder, x, triangles, u = mesh
    out = str(folder / 'points.h5')
    from_meshes([str(folder / 'a.xdmf'), str(folder / 'b*.vtu')], 'obstacles', {'Re': 80.}, out, NAMES, .5)
    with h5py.File(out) as file:
        for row in ('0000', '0001'):
            np.testing.assert_allclose(file[f'{row}/points'], x, atol=1e-12)
            np.testing.assert_allclose(file[f'{row}/values'], u, rtol=1e-6, atol=1e-6)
            assert (file[f'{row}/cells'][:] == triangles).all()
    source = open_source(out)
    assert source.n == 2 and source.params == {'Re': 80.} and source.dt == pytest.approx(.5)
    back = str(folder / 'back.xdmf')
    to_mesh(out, 1, back)
    times, points, values, cells = read_mesh(back, {name: name for name in ENTRY.fields})
    np.testing.assert_allclose(times, MESH_TIMES)
    np.testing.assert_allclose(points[:, :2], x, atol=1e-12)
    np.testing.assert_allclose(values, u, rtol=1e-6, atol=1e-6)
    assert (cells == triangles).all()
    assert 'no trajectory 5' in refused(to_mesh, out, 5, back)


@pytest.mark.parametrize('fields, word', [
    ({}, "--fields vx=NAME"), ({'vx': 'U:0', 'vy': 'U:1', 'p': 'q'}, '--fields p=NAME'),
    ({'vx': 'U', 'vy': 'U:1'}, 'U is a vector'), ({'vx': 'U:7', 'vy': 'U:1'}, 'component 7'),
    ({'vx': 'p:0', 'vy': 'U:1'}, 'no component 0')])
def test_fields_of_meshes(mesh, fields, word):
    folder, *_ = mesh
    assert word in refused(from_meshes, [str(folder / 'a.xdmf')], 'obstacles', {'Re': 80.}, str(folder / 'x.h5'), fields)


def test_what_cannot_be_used_leaves_no_file(mesh):
    import meshio
    folder, *_ = mesh
    out = folder / 'x.h5'
    far = meshio.read(str(folder / 'b0.vtu'))
    far.points[:, 0] += 5.
    for k in range(2):
        far.write(str(folder / f'far{k}.vtu'))
    options = 'obstacles', {'Re': 80.}, str(out), NAMES, .4
    assert 'leaves the domain' in refused(from_meshes, [str(folder / 'far*.vtu')], *options)
    assert 'other times' in refused(from_meshes, [str(folder / 'a.xdmf'), str(folder / 'b*.vtu')], *options)
    assert not out.exists() and not list(folder.glob('*.tmp*'))


def test_meshes_that_move_are_refused(mesh):
    """XDMF with a geometry in each frame: the same one is fine."""
    folder, x, triangles, _ = mesh
    frame = ('<Grid GridType="Uniform"><Time Value="{t}"/><Topology TopologyType="Triangle" NumberOfElements="1">'
             '<DataItem DataType="Int" Dimensions="1 3" Format="XML">0 1 2</DataItem></Topology>'
             '<Geometry GeometryType="XY"><DataItem DataType="Float" Dimensions="3 2" Format="XML">0 0 1 0 {x} 1'
             '</DataItem></Geometry><Attribute Name="p" AttributeType="Scalar" Center="Node">'
             '<DataItem DataType="Float" Dimensions="3 1" Format="XML">1 2 {t}</DataItem></Attribute></Grid>')
    lists = '<Grid GridType="Collection" CollectionType="Temporal">{}</Grid>'
    path = folder / 'c.xdmf'

    def write(*of_lists):
        grids = ''.join(lists.format(''.join(frame.format(t=t, x=x) for t, x in frames)) for frames in of_lists)
        path.write_text(f'<Xdmf Version="3.0"><Domain>{grids}</Domain></Xdmf>')

    write([(0, 0), (1, 0)])
    times, points, values, _ = read_mesh(str(path), {'p': 'p'})
    assert times.tolist() == [0, 1] and values[:, 2, 0].tolist() == [0, 1] and points.shape == (3, 2)
    write([(0, 0), (1, 0)], [(0, 0), (1, 0)])                        # a list for each function
    assert read_mesh(str(path), {'p': 'p'})[2].shape == (2, 3, 1)
    write([(0, 0), (1, 0)], [(0, 0), (2, 0)])
    assert 'different times' in refused(read_mesh, str(path), {'p': 'p'})
    write([(0, 0), (1, .3)])
    assert 'points of the frames differ' in refused(read_mesh, str(path), {'p': 'p'})
    for broken in ('<Xdmf', '<Xdmf/>', '<Xdmf Version="3.0"><Domain/></Xdmf>'):
        path.write_text(broken)
        assert 'meshio cannot read' in refused(read_mesh, str(path), {'p': 'p'})
    for k in range(2):
        (folder / f'd{k}.vtu').write_text('<VTKFile type="PolyData"/>')
    assert 'meshio cannot read' in refused(read_mesh, str(folder / 'd*.vtu'), {'p': 'p'}, 1.)


def test_the_command(mesh, capsys):
    import meshio
    folder, *_ = mesh
    a = str(folder / 'a.xdmf')
    b = str(folder / 'b*.vtu')
    out = str(folder / 'x.h5')
    words = ['--pde', 'obstacles', '--re', '80', '--fields', 'vx=U:0', 'vy=U:1', '--out']
    mesh_command([a, *words, out])
    assert open_source(out).params == {'Re': 80.}
    assert out in capsys.readouterr().out
    assert 'exists' in refused(mesh_command, [a, *words, str(folder / 'a.h5')])      # the values of a.xdmf
    other = str(folder / 'y.h5')
    assert 'no file' in refused(mesh_command, [str(folder / 'c*.vtu'), *words, other])
    assert '--dt' in refused(mesh_command, [b, *words, other])
    assert 'in quotes' in refused(mesh_command, [str(folder / 'b1.vtu'), *words, other])
    assert '--pde' in refused(mesh_command, [a, '--out', other])
    assert '--re is needed' in refused(mesh_command, [a, '--pde', 'obstacles', '--out', other])
    assert '--fields w' in refused(mesh_command, [a, *words, other, '--fields', 'w=U:2'])
    assert 'must end with' in refused(mesh_command, [out, '--out', str(folder / 'y.vtu')])
    assert 'one file' in refused(mesh_command, [out, out, '--out', str(folder / 'y.xdmf')])
    tilted = meshio.read(str(folder / 'b0.vtu'))
    tilted.points[:, 2] = tilted.points[:, 0]
    for k in range(2):
        tilted.write(str(folder / f'd{k}.vtu'))
    assert '3 dimensions' in refused(mesh_command, [str(folder / 'd*.vtu'), '--dt', '.4', *words, other])
