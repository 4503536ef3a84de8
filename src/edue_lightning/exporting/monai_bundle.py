"""The MONAI bundle of a trained model: programs, and a configuration that runs them on files without this package.

The configuration loads and prepares the images of a case as in training, runs the network on the whole image or window
by window, and writes mask, probability and disagreement on the voxels of the case's own (first) file. A file that it
might read otherwise than `predict` ends it with one line. Its expressions need torch, monai and nibabel, and Pillow for
pictures.
"""

from __future__ import annotations

import json
import math
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import nibabel
import numpy as np
import PIL
import torch
from torch.export import ExportedProgram

from edue_lightning.config.build import ImageFormat
from edue_lightning.data.geometry import DICOM_SLICE, PICTURE
from edue_lightning.data.image_limits import RIGHT_ANGLE_TOLERANCE
from edue_lightning.data.images import PICTURES, VOLUMES
from edue_lightning.data.new_images import OTHER_IMAGES
from edue_lightning.data.preparation import Preparation, SquarePicture, Stacked
from edue_lightning.data.sources.hecktor.preparation import (
    LEAST_SUV,
    MOST_PLAUSIBLE_SUV,
    MOST_WITHOUT_AIR,
    PetCt,
)
from edue_lightning.errors import UserError
from edue_lightning.methods import Inference
from edue_lightning.prediction.outputs import DISAGREEMENT, MASK, PROBABILITY, TOTAL_VARIANCE

METADATA, INFERENCE = "configs/metadata.json", "configs/inference.json"
NETWORK, MAPS_OF_LOGITS = "models/network.pt2", "models/maps.pt2"

_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_VOLUMES = ((".nii", ".nii.gz"), r"\.nii(\.gz)?$")
_PICTURES = ((".png", ".jpg", ".jpeg", ".tif", ".tiff"), r"\.(png|jpe?g|tiff?)$")
_IMPORTS = [f"$import {name}" for name in ("itertools", "nibabel", "os", "pathlib", "re", "sys", "torch.export.passes")]
# names of the channels of one case, as in `edue_lightning.data.new_images`; numbers of pictures count the cases
_CHANNEL = r"(_{1,2}(CT|PT)|_[0-9]{4}|__[1-9])?"
_CHANNEL_OF_PICTURES = r"(_{1,2}(CT|PT)|__[1-9])?"
_AIR = -1024.0
_WHOLE_VOXELS = 1e-3
_AXES = [["L", "R"], ["P", "A"], ["I", "S"]]


def bundle_configuration(
    preparation: Preparation,
    inference: Inference,
    image_format: ImageFormat,
    has_disagreement: bool,
    thresholds: Sequence[float],
) -> dict[str, Any]:
    """Return the content of `configs/inference.json`.

    Args:
        preparation: preparation of the training's images.
        inference: settings for whole images.
        image_format: format of the images.
        has_disagreement: see `Readout.has_disagreement`.
        thresholds: threshold of the decision for each structure.

    Raises:
        UserError: if the preparation cannot be expressed in MONAI's configuration.
    """
    volumes = image_format.spatial_dims == 3
    if image_format.storage not in (None, PICTURE):
        kind = "DICOM" if image_format.storage == DICOM_SLICE else "NIfTI"
        raise UserError(
            f"format=monai_bundle: the model was trained on {kind} slices, which a bundle cannot read; choose "
            "format=onnx or format=torch_export, and prepare the images yourself"
        )
    endings, ending_pattern = _VOLUMES if volumes else _PICTURES
    others = tuple(sorted({*PICTURES, *VOLUMES, *OTHER_IMAGES} - {*endings}))
    channels = image_format.channels
    channel_pattern = "" if channels == 1 else _CHANNEL if volumes else _CHANNEL_OF_PICTURES
    case_pattern = channel_pattern + ending_pattern
    # the names that the files of one case have, if there are several
    sets = [["CT", "PT"], [f"{n:04d}" for n in range(channels)], [str(n + 1) for n in range(channels)]]
    sets = [one for one in sets if len(one) == channels > 1]
    names = image_format.structures
    reached = "[values >= threshold for values, threshold in zip(data['decision'], @thresholds)]"
    if image_format.exclusive:
        reached = (
            "[(values >= threshold) & (data['decision'].argmax(0) == k) for k, (values, threshold) in"
            " enumerate(zip(data['decision'], @thresholds))]"
        )
    return {
        "imports": _IMPORTS if volumes else [*_IMPORTS, "$from PIL import Image"],
        "bundle_root": ".",
        "dataset_dir": "$os.path.join(@bundle_root, 'input')",
        "output_dir": "$os.path.join(@bundle_root, 'output')",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "case_of": f"$lambda path: re.sub({case_pattern!r}, '', os.path.basename(path), flags=re.IGNORECASE)",
        "files": (
            f"$[str(path) for path in pathlib.Path(@dataset_dir).iterdir() if path.name.lower().endswith({endings})]"
        ),
        "refuse": "$lambda path, reason: sys.exit(f'{os.path.basename(path)}: {reason}')",
        "grouped": (
            "$[{'case': case, 'image': list(paths)} for case, paths in itertools.groupby("
            "sorted(@files, key=lambda path: (@case_of(path), path)), key=@case_of)]"
        ),
        "channels_of": (
            f"$lambda paths: [re.sub({ending_pattern!r}, '', path, flags=re.IGNORECASE).rpartition('_')[2].upper()"
            " for path in paths]"
        ),
        "datalist": (
            f"$[case if len(case['image']) == 1 or @channels_of(case['image']) in {sets}"
            " else @refuse(case['image'][0], 'and ' + ', '.join(map(os.path.basename, case['image'][1:])) +"
            " ' are not the channels of one case; rename them') for case in @grouped]"
        ),
        **(_CHECK_VOLUMES if volumes else _CHECK_PICTURES),
        "checked": (
            "$lambda data: [@refuse(path, problem) for path in data['image'] for problem in [@problem_of(path)]"
            " if problem] or data"
        ),
        **_preparing(preparation, volumes),
        "is_expected": f"$lambda image: len(image) == {channels} and bool(torch.isfinite(image).all())",
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        # programs hold the device that they were traced on
        "program_of": (
            "$lambda name: torch.export.passes.move_to_device_pass("
            "torch.export.load(os.path.join(@bundle_root, name)), @device).module()"
        ),
        "network_def": f"$@program_of('{NETWORK}')",
        "network": "$@network_def",
        "maps": f"$@program_of('{MAPS_OF_LOGITS}')",
        "inferer": _inferer(inference),
        "name_endings": [f"__{name}" if len(names) > 1 else "" for name in names],
        "thresholds": list(thresholds),
        "path": "$lambda data, name, k: os.path.join(@output_dir, data['case'] + '__' + name + @name_endings[k])",
        **(_WRITE_VOLUMES if volumes else _WRITE_PICTURES),
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                "$torch.no_grad()(lambda data: {**data, **@maps(@inferer(data['image'][None].to(@device), @network))})",
                "$lambda data: {**data, 'probability': @on_file(data['probability'][0].cpu(), data),"
                " 'disagreement': @on_file(data['disagreement'][0].cpu(), data).clamp_min(0),"
                " 'decision': @on_file(data['decision'][0].cpu(), data)}",
                f"$lambda data: @write_masks(data, '{MASK}', {reached}) and data",
                f"$lambda data: @write_maps(data, '{PROBABILITY}', data['probability']) and data",
                f"$lambda data: @write_maps(data, '{DISAGREEMENT if has_disagreement else TOTAL_VARIANCE}',"
                " data['disagreement']) and data",
            ],
        },
        "initialize": [
            f"$[@refuse(path, 'is of a format that is not read; convert it, or move it away') for path in"
            f" sorted(os.listdir(@dataset_dir)) if path.lower().endswith({others}) and not"
            f" path.lower().endswith({endings})]",
            "$@files or @refuse(@dataset_dir, 'holds no image')",
            "$os.makedirs(@output_dir, exist_ok=True)",
        ],
        "run": ["$[print(@postprocessing(data)['case']) for data in @dataset]"],
    }


def bundle_metadata(description: Mapping[str, Any], image_format: ImageFormat, sizes: Sequence[str]) -> dict[str, Any]:
    """Return the content of `configs/metadata.json`.

    Args:
        description: description of the model as plain values, the bundle's entry `edue_lightning`.
        image_format: format of the images.
        sizes: allowed lengths of each axis, in MONAI's notation.
    """
    per_voxel = {
        "type": "image",
        "format": "segmentation",
        "num_channels": len(image_format.structures),
        "spatial_shape": list(sizes),
        "dtype": "float32",
        "is_patch_data": description["window"] is not None,
        "channel_def": {str(k): name for k, name in enumerate(image_format.structures)},
    }
    channels = {str(number): f"channel {number + 1}" for number in range(image_format.channels)}
    members = [f"member {number + 1}" for number in range(description["members"])]
    channels_of = [*members, *description["readout"]["own_maps"]]
    logits = "logits of all structures of the first member, then of the second, ..."
    if image_format.exclusive:
        logits += "; those of a softmax, in which the background has the logit 0"
    return {
        "schema": _SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": "exported"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": nibabel.__version__, "pillow": PIL.__version__},
        "name": f"{description['method']} of {', '.join(image_format.structures)}",
        "task": f"segmentation of {', '.join(image_format.structures)} with a map of disagreement",
        "description": (
            f"{image_format.spatial_dims}D segmentation by {description['method']}: mask, probability and disagreement"
        ),
        "authors": "",
        "copyright": "",
        "intended_use": "research",
        "network_data_format": {
            "inputs": {
                "image": {
                    **per_voxel,
                    "format": "prepared as in training, see preprocessing",
                    "num_channels": image_format.channels,
                    "value_range": [],
                    "channel_def": channels,
                }
            },
            "outputs": {
                "pred": {
                    **per_voxel,
                    "format": logits,
                    "num_channels": len(channels_of) * len(image_format.structures),
                    "value_range": [],
                    "channel_def": {
                        str(number * len(image_format.structures) + k): f"{name} of {channel}"
                        for number, channel in enumerate(channels_of)
                        for k, name in enumerate(image_format.structures)
                    },
                }
            },
        },
        "edue_lightning": dict(description),
    }


def write_bundle(
    folder: Path,
    programs: Mapping[str, ExportedProgram],
    texts: Mapping[str, Mapping[str, Any]],
    check: Callable[[Path], object],
) -> None:
    """Write a bundle; the folder appears whole or not at all, and replaces an earlier one.

    Args:
        folder: folder of the bundle; its parent is created if necessary.
        programs: programs by their paths in the bundle.
        texts: contents of JSON files by their paths in the bundle.
        check: called with the folder before it is moved to its place.

    Raises:
        UserError: if it cannot be written.
    """
    temporary = folder.parent / f"unfinished-{uuid.uuid4().hex}.tmp"
    replaced = temporary.with_suffix(".old")
    try:
        for name in (*programs, *texts):
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        for name, program in programs.items():
            torch.export.save(program, temporary / name)
        for name, content in texts.items():
            (temporary / name).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        check(temporary)
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); free some space") from error
    finally:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _inferer(inference: Inference) -> dict[str, Any]:
    if inference.window is None:
        return {"_target_": "SimpleInferer"}
    # places, weights and padding of windows as in `Inference`
    return {
        "_target_": "SlidingWindowInferer",
        "roi_size": list(inference.window),
        "sw_batch_size": inference.batch_size,
        "overlap": inference.overlap,
        "mode": "gaussian",
    }


def _preparing(preparation: Preparation, volumes: bool) -> dict[str, Any]:
    """Return `preprocessing` with the expressions it uses, and `on_file`, which maps results to the file's voxels."""
    if isinstance(preparation, Stacked):
        read = _LOAD_VOLUMES if volumes else [_with("torch.cat([@read_picture(path) for path in data['image']])")]
        return {
            **(_TURN_VOLUMES if volumes else _READ_PICTURE),
            **({"standardised": _STANDARDISED} if preparation.standardise else {}),
            "preprocessing": {
                "_target_": "Compose",
                "transforms": ["$@checked", *read, _EXPECTED, *_intensities(preparation)],
            },
            "on_file": "$lambda maps, data: @turned_back(maps, data)" if volumes else "$lambda maps, data: maps",
        }
    if isinstance(preparation, SquarePicture):
        return {
            **_READ_PICTURE,
            "resized": _RESIZED,
            "preprocessing": {
                "_target_": "Compose",
                "transforms": [
                    "$@checked",
                    "$lambda data: data if len(data['image']) == 1 else @refuse(data['case'], 'is not one picture')",
                    _with("@read_picture(data['image'][0])"),
                    "$lambda data: data if len(data['image']) in (1, 3) else @refuse(data['case'], 'has"
                    " neither one nor three channels')",
                    "$lambda data: {**data, 'size': tuple(data['image'].shape[1:])}",
                    _with(f"@resized(data['image'].expand(3, -1, -1), ({preparation.size}, {preparation.size}))"),
                    _EXPECTED,
                ],
            },
            "on_file": "$lambda maps, data: @resized(maps, data['size'])",
        }
    if isinstance(preparation, PetCt):
        return _preparing_petct(preparation)
    raise UserError(
        f"format=monai_bundle: the preparation {type(preparation).__name__} has no counterpart in MONAI; choose "
        "format=onnx or format=torch_export, and prepare the images yourself"
    )


def _with(image: str) -> str:
    return f"$lambda data: {{**data, 'image': {image}}}"


def _intensities(stacked: Stacked) -> list[str]:
    if stacked.standardise:
        return [_with("@standardised(data['image'])")]
    if stacked.offset or stacked.scale != 1:
        return [_with(f"(data['image'] + {float(stacked.offset)!r}) / {float(stacked.scale)!r}")]
    return []


_EXPECTED = (
    "$lambda data: data if @is_expected(data['image']) else @refuse(data['case'], 'has another number of channels than"
    " the model expects, or holds NaN or infinity')"
)

# what `edue_lightning.data.images.read_image` checks; each condition must be computable whatever the others say
_CHECK_VOLUMES = {
    # read to its end, gzip verifies its checksum
    "bytes_of": (
        "$lambda path: sum(len(part) for file in [nibabel.openers.ImageOpener(path)]"
        " for part in iter(lambda: file.read(2**20), b''))"
    ),
    "two_places": (
        "$lambda header, sform, qform: sform is not None and qform is not None and not np.abs(sform - qform)[:3].dot("
        "[*(header.get_data_shape() + (1, 1))[:3], 1]).sum() <= nibabel.affines.voxel_sizes(sform).min() / 2"
    ),
    "two_sizes": (
        "$lambda header, sform: sform is not None and bool((header['pixdim'][1:4] > 0).all()) and not"
        " np.allclose(nibabel.affines.voxel_sizes(sform), header['pixdim'][1:4], rtol=0.01, atol=0)"
    ),
    "is_regular": (
        "$lambda affine: bool(np.isfinite(affine).all()) and 1e-6 <= nibabel.affines.voxel_sizes(affine).min()"
        " <= nibabel.affines.voxel_sizes(affine).max() <= 1e4"
        " and np.linalg.matrix_rank(affine[:3, :3] / nibabel.affines.voxel_sizes(affine), tol=1e-6) == 3"
    ),
    "is_sheared": (
        "$lambda directions: bool(np.abs(np.triu(directions.T.dot(directions), 1)).max()"
        f" > {math.sin(math.radians(RIGHT_ANGLE_TOLERANCE)):.6g})"
    ),
    "header_problem": (
        "$lambda header, size: next((text for is_wrong, text in ["
        "(not bytes(header['magic']).startswith(b'n+') or header['vox_offset'] < header.single_vox_offset,"
        " 'its voxels do not lie behind its header; save it again'),"
        "(header.get_data_dtype().kind not in 'iuf', 'holds colours or complex numbers; save plain numbers'),"
        "(len(header.get_data_shape()) not in (3, 4) or header.get_data_shape()[2] == 1, 'is no volume'),"
        "(header.get_xyzt_units()[0] not in ('mm', 'unknown'), 'its header is not in mm; save it in mm'),"
        "(size > header['vox_offset'] + 2 * np.prod(header.get_data_shape()) * header.get_data_dtype().itemsize,"
        " 'holds many more bytes than its header claims; save it again'),"
        "(not @is_regular(header.get_best_affine()), 'its header gives no valid voxel size; correct its affine'),"
        "(@is_sheared(header.get_best_affine()[:3, :3] / nibabel.affines.voxel_sizes(header.get_best_affine())),"
        " 'has axes that are not at right angles (shear or tilted gantry); resample to a grid with right angles'),"
        "(@two_places(header, header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]),"
        " 'its header places the voxels in two ways (sform and qform); correct one'),"
        "(@two_sizes(header, header.get_sform(coded=True)[0]),"
        " 'its header gives two voxel sizes (sform and pixdim); correct one'),"
        "] if is_wrong), None)"
    ),
    # as it is stored; nibabel resets where the voxels begin
    "header_of": (
        "$lambda start: next(kind(start[:kind.template_dtype.itemsize], check=False) for kind in"
        " (nibabel.Nifti1Header, nibabel.Nifti2Header) if kind.may_contain_header(start))"
    ),
    "problem_of": (
        "$lambda path: @header_problem(@header_of(nibabel.openers.ImageOpener(path).read(540)), @bytes_of(path))"
    ),
}

# fewer kinds of pictures than `edue_lightning.data.images.read_image` takes, all with the values it gives
_CHECK_PICTURES = {
    "tags_of": "$lambda picture: dict(picture.tag_v2) if picture.format == 'TIFF' else {}",
    "kind_of": (
        "$lambda tags: (tags.get(262), {*tags.get(258, (1,))}, {*tags.get(339, (1,))},"
        " tags.get(277, 1) - len(tags.get(338, ())))"
    ),
    "is_plain": (
        "$lambda tags: not tags or (@kind_of(tags) in [(1, {1}, {1}, 1), (1, {8}, {1}, 1), (1, {16}, {1}, 1),"
        " (1, {32}, {3}, 1), (2, {8}, {1}, 3)] and {*tags.get(338, ())} <= {1, 2} and len(tags.get(338, ())) <= 1"
        " and tags.get(274, 1) in (0, 1) and tags.get(32997, 1) == 1"
        " and not re.search('images=|\"truncated\"', str(tags.get(270, ''))))"
    ),
    "is_swapped": (
        "$lambda picture, tags: bool(tags) and picture.tag_v2.prefix == b'MM' and tags.get(259, 1) != 1"
        " and max(tags.get(258, (1,))) > 8"
    ),
    "picture_problem": (
        "$lambda picture, tags: next((text for is_wrong, text in ["
        "(getattr(picture, 'n_frames', 1) > 1, 'holds several pages; save one picture per file'),"
        "(picture.mode not in ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'I', 'I;16', 'I;16B', 'F'),"
        " 'holds colours of an unusual kind; save it as grey or RGB'),"
        "(';16' in str(picture.tile) and not picture.mode.startswith('I'), 'holds 16-bit colours; save it with 8'),"
        "(picture.getexif().get(274, 1) not in (0, 1), 'is stored turned; save it upright'),"
        "(not @is_plain(tags) or @is_swapped(picture, tags),"
        " 'is a TIFF file that programs read in different ways; save it as PNG'),"
        "(picture.mode == 'I', 'is read without its number of bits by this version of Pillow; install a newer one'),"
        "] if is_wrong), None)"
    ),
    # Pillow verifies the checksums of a PNG file on demand alone
    "problem_of": (
        "$lambda path: (lambda picture: @picture_problem(picture, @tags_of(picture)) or"
        " (Image.open(path).verify() if picture.format == 'PNG' else None))(Image.open(path,"
        " formats=('PNG', 'JPEG', 'TIFF')))"
    ),
}

# with the meaning of `edue_lightning.data.preparation.standardised`
_STANDARDISED = (
    "$lambda image: torch.stack([((channel.double() - channel.double().mean()) / channel.double().std(correction=0))"
    ".float() if channel.min() < channel.max() else torch.zeros_like(channel) for channel in image])"
)

_LOAD_VOLUMES: list[Any] = [
    {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader", "ensure_channel_first": True},
    "$lambda data: {**data, 'original': data['image'], 'turned': @canonical(data['image'])}",
    "$lambda data: {**data, 'image': data['turned'].as_tensor()}",
]

_CANONICAL = {"_target_": "Orientation", "axcodes": "RAS", "labels": _AXES}

# with the meaning of `edue_lightning.data.images.canonical`
_TURN_VOLUMES: dict[str, Any] = {
    "canonical": _CANONICAL,
    "axes": "$lambda volume: ''.join(nibabel.aff2axcodes(volume.affine.numpy()))",
    "turned_back": (
        f"$lambda maps, data: monai.transforms.Orientation(axcodes=@axes(data['original']), labels={_AXES})"
        "(monai.data.MetaTensor(maps, affine=data['turned'].affine)).as_tensor()"
    ),
}

# with the meaning of `edue_lightning.data.images.read_image`
_READ_PICTURE = {
    "opened": (
        "$lambda path: (lambda picture: picture if picture.mode in"
        " ('1', 'L', 'LA', 'RGB', 'RGBA', 'I', 'I;16', 'I;16B', 'F') else picture.convert('RGB'))(Image.open(path))"
    ),
    "stored": (
        "$lambda picture: np.moveaxis(np.atleast_3d(np.array(picture)), -1, 0)"
        "[:len(picture.getbands()) - ('A' in picture.getbands())]"
    ),
    "scaled": (
        "$lambda stored: stored.astype(np.float32)"
        " / np.float32(np.iinfo(stored.dtype).max if stored.dtype.kind == 'u' else 1)"
    ),
    "read_picture": "$lambda path: torch.from_numpy(np.ascontiguousarray(@scaled(@stored(@opened(path)))))",
}

# with the meaning of `edue_lightning.data.preparation.resized`
_RESIZED = (
    "$lambda maps, size: maps if tuple(maps.shape[1:]) == size else torch.stack([torch.from_numpy(np.array("
    "Image.fromarray(values.numpy()).resize((size[1], size[0]), Image.Resampling.BILINEAR))) for values in maps])"
)

# by nibabel itself: MONAI's `SaveImage` cannot write a volume whose first two axes are not the first two of space
_WRITE_VOLUMES = {
    "placed": "$lambda values, data: nibabel.Nifti1Image(values, data['original'].affine.numpy())",
    "write_masks": (
        "$lambda data, name, maps: [nibabel.save(@placed(values.numpy().astype(np.uint8), data),"
        " @path(data, name, k) + '.nii.gz') or k for k, values in enumerate(maps)]"
    ),
    "write_maps": (
        "$lambda data, name, maps: [nibabel.save(@placed(values.numpy().astype(np.float32), data),"
        " @path(data, name, k) + '.nii.gz') or k for k, values in enumerate(maps)]"
    ),
}

_WRITE_PICTURES = {
    "write_masks": (
        "$lambda data, name, maps: [Image.fromarray(values.numpy().astype(np.uint8) * np.uint8(255))"
        ".save(@path(data, name, k) + '.png') or k for k, values in enumerate(maps)]"
    ),
    "write_maps": (
        "$lambda data, name, maps: [Image.fromarray(values.numpy()).save(@path(data, name, k) + '.tif') or k"
        " for k, values in enumerate(maps)]"
    ),
}


def _preparing_petct(preparation: PetCt) -> dict[str, Any]:
    (ct_low, ct_high), (suv_low, suv_high) = preparation.ct_window, preparation.suv_window
    return {
        "canonical": _CANONICAL,
        **({"grid": "$lambda ct: ct"} if preparation.spacing is None else _respacing(preparation.spacing)),
        # as in `edue_lightning.data.geometry.resample`: a grid on whole steps of another counts as lying on it exactly
        "step": "$lambda volume, grid: torch.linalg.inv(volume.affine).matmul(grid.affine)",
        "is_whole": (
            "$lambda step, shape: bool((step - step.round())[:3].abs().matmul(torch.tensor([n - 1.0 for n in shape]"
            f" + [1.0], dtype=torch.float64)).max() < {_WHOLE_VOXELS}"
            " and (step[:3, :3].round().abs().sum(0) == 1).all())"
        ),
        "target": (
            "$lambda volume, grid: volume.affine.matmul(@step(volume, grid).round())"
            " if @is_whole(@step(volume, grid), grid.shape[1:]) else grid.affine"
        ),
        # values reach half a voxel beyond the border, up to where the nearest voxel is no longer one of the volume
        "interpolated": {"_target_": "SpatialResample", "padding_mode": "border", "align_corners": True},
        "inside": {"_target_": "SpatialResample", "mode": "nearest", "padding_mode": "zeros", "align_corners": True},
        "resample": (
            "$lambda volume, grid, fill: (lambda affine: torch.where(@inside(torch.ones_like(volume), affine,"
            " grid.shape[1:]).as_tensor() >= 1, @interpolated(volume, affine, grid.shape[1:]).as_tensor(), fill))"
            "(@target(volume, grid))"
        ),
        "has_contrast": "$lambda values, low, high: bool(low < values.max() > values.min() < high)",
        "windowed": "$lambda values, low, high: ((values - low) / (high - low)).clip(0, 1)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                "$@checked",
                "$lambda data: data if len(data['image']) == 2 else @refuse(data['case'], 'is not a CT and its PET')",
                "$lambda data: {**data, 'ct': data['image'][0], 'pet': data['image'][1]}",
                {
                    "_target_": "LoadImaged",
                    "keys": ["ct", "pet"],
                    "reader": "NibabelReader",
                    "ensure_channel_first": True,
                },
                "$lambda data: data if len(data['ct']) == len(data['pet']) == 1 and"
                " bool(torch.isfinite(data['ct']).all() and torch.isfinite(data['pet']).all())"
                " else @refuse(data['case'], 'has several channels in a file, or holds NaN or infinity')",
                f"$lambda data: data if not (data['ct'].min() >= 0 and data['ct'].max() > {MOST_WITHOUT_AIR}) and"
                f" @has_contrast(data['ct'], {ct_low}, {ct_high}) else @refuse(data['case'], 'its CT is not in"
                " Hounsfield units, or constant within the window')",
                f"$lambda data: data if data['pet'].max() <= {MOST_PLAUSIBLE_SUV} and"
                f" data['pet'].min() >= {LEAST_SUV} and @has_contrast(data['pet'], {suv_low}, {suv_high})"
                " else @refuse(data['case'], 'its PET is not in standardised uptake values, or constant within the"
                " window')",
                "$lambda data: {**data, 'original': data['ct'], 'grid': @grid(@canonical(data['ct']))}",
                "$lambda data: data if bool((@inside(torch.ones_like(data['pet']), @target(data['pet'], data['grid']),"
                " data['grid'].shape[1:]) > 0).any()) else @refuse(data['case'], 'its CT and PET lie nowhere on each"
                " other; correct the affine of one')",
                _with(
                    f"torch.cat([@windowed(@resample(data['ct'], data['grid'], {_AIR}), {ct_low}, {ct_high}),"
                    f" @windowed(@resample(data['pet'], data['grid'], 0.0), {suv_low}, {suv_high})])"
                ),
            ],
        },
        "on_file": (
            "$lambda maps, data: @resample(monai.data.MetaTensor(maps, affine=data['grid'].affine),"
            " data['original'], 0.0)"
        ),
    }


def _respacing(spacing: Sequence[float]) -> dict[str, Any]:
    """Return `grid`: over the box of a CT with voxels of another size, as `edue_lightning.data.geometry.respaced`."""
    return {
        "factors": (
            f"$lambda ct: torch.tensor({[float(size) for size in spacing]}, dtype=torch.float64)"
            " / ct.affine[:3, :3].norm(dim=0)"
        ),
        "steps": (
            "$lambda ct, factors: torch.cat([torch.cat([torch.diag(factors), ((torch.tensor(ct.shape[1:]) - 1"
            " - (torch.tensor(@lengths(ct, factors)) - 1) * factors) / 2)[:, None]], 1), torch.eye(4).double()[3:]])"
        ),
        "lengths": (
            f"$lambda ct, factors: torch.ceil(torch.tensor(ct.shape[1:]) / factors - {_WHOLE_VOXELS}).clamp_min(1)"
            ".int().tolist()"
        ),
        "grid": (
            "$lambda ct: monai.data.MetaTensor(torch.zeros(1, *@lengths(ct, @factors(ct))),"
            " affine=ct.affine.matmul(@steps(ct, @factors(ct))))"
        ),
    }
