"""Field names and values of other tools, with the storyboard's equivalents, for error messages."""

from __future__ import annotations

import re

from svi_story.fields import format_value

_REFERENCE = "the first picture is `reference: images/cat.jpg`"
_CAPTION = "text on the picture is a clip's `caption`"
_GUIDANCE = "it is `guidance`, under `engine:` or in a clip"
_MUSIC = "music is `audio`, under `cut:`; a clip has `voice` and `sounds`"
_SIZE = "the film's size is `resolution: 832x480`, at the top level"
_WEIGHTS = (
    "a board does not name weights: choose their folder with --models or in svi-story.toml, and the engine "
    "with `engine: {name: svi}`"
)
_NEGATIVE = "it is `negative_prompt`"
_CAMERA = "describe in the prompt what the camera does"
_INCLUDE = "a board is one file; put repeated words into `let:` and render several boards in one folder"
_SAMPLER = "the sampler is fixed, as in the authors' scripts; set `steps` and `shift` under `engine:`"
_LENGTH = "a clip's length is `duration: 5s` or `frames: 81`"
_STEPS = "it is `steps`, under `engine:`"
_VOICE = "speech is a clip's `voice: voices/01.wav`"
_FADE = "it is `transition: {fade: 0.5s}`"
_CLIPS = "the parts of a film are `clips:`"
_OUTPUT = "choose where films go with -o DIR or `output` in svi-story.toml"
_SEED = "it is `seed`"
_TAKES = "versions of a clip are its `takes: 3`, and the one for the film is `pick: 2`"
_PROMPT = "what is seen is a clip's `prompt`"

_WRITTEN = re.compile(r"(?P<name>[A-Za-z][A-Za-z _-]*?)[ :=(]*(?P<seconds>\d+(?:\.\d+)?)? ?s?\)?")
"""A transition as one word or several, perhaps with its length."""
_TRANSITIONS = (
    (("fade", "crossfade", "dissolve", "crossdissolve", "xfade", "mix", "blend"), "{{fade: {}}}", "0.5s"),
    (("dip", "diptoblack", "fadetoblack", "fadeblack", "fadethroughblack", "black"), "{{dip: {}}}", "1s"),
    (("hardcut", "straightcut", "jumpcut", "none"), "cut", ""),
    (("seamless", "morph", "smooth", "auto"), "continue", ""),
)
TRANSITIONS = "the transitions are `cut`, `continue`, `{fade: 0.5s}` and `{dip: 1s}`"

_NAMES = {
    **dict.fromkeys(
        ("image", "images", "image_path", "input_image", "start_image", "init_image", "ref", "ref_image"),
        _REFERENCE,
    ),
    **dict.fromkeys(("first_frame", "start_frame", "reference_image", "picture"), _REFERENCE),
    **dict.fromkeys(("subtitle", "subtitles", "overlay", "srt"), _CAPTION),
    **dict.fromkeys(("cfg", "cfg_scale", "guidance_scale"), _GUIDANCE),
    **dict.fromkeys(("music", "soundtrack", "bgm", "background_music"), _MUSIC),
    **dict.fromkeys(("aspect", "aspect_ratio", "ratio", "width", "height", "size", "dimensions"), _SIZE),
    **dict.fromkeys(("model", "models", "checkpoint", "ckpt", "unet", "weights"), _WEIGHTS),
    **dict.fromkeys(("negative", "neg", "neg_prompt", "negative_prompts"), _NEGATIVE),
    **dict.fromkeys(("camera", "camera_motion", "camera_movement", "motion"), _CAMERA),
    **dict.fromkeys(("include", "import", "extends"), _INCLUDE),
    **dict.fromkeys(("sampler", "sampler_name", "scheduler"), _SAMPLER),
    **dict.fromkeys(("length", "num_frames", "frame_count", "seconds"), _LENGTH),
    **dict.fromkeys(("num_inference_steps", "sampling_steps", "sample_steps"), _STEPS),
    **dict.fromkeys(("lora", "lora_path"), "LoRAs are a list: `loras`, under `engine:` or in a clip"),
    **dict.fromkeys(("voiceover", "voice_over", "narration", "speech", "tts", "dialogue"), _VOICE),
    **dict.fromkeys(("sound", "sfx", "sound_effects"), "a clip's sounds are a list: `sounds`"),
    **dict.fromkeys(("fade", "crossfade", "dissolve"), _FADE),
    **dict.fromkeys(("scenes", "shots", "segments", "prompts"), _CLIPS),
    **dict.fromkeys(("frame_rate", "framerate"), "it is `fps`"),
    **dict.fromkeys(("output", "filename", "output_path"), _OUTPUT),
    **dict.fromkeys(("noise_seed", "random_seed"), _SEED),
    **dict.fromkeys(("description", "text", "positive", "positive_prompt"), _PROMPT),
    **dict.fromkeys(("take", "variations", "variants", "versions", "candidates", "selected"), _TAKES),
    **dict.fromkeys(("batch_size", "batch_count", "num_outputs", "num_samples", "num_videos"), _TAKES),
    "name": "a clip's name is its `id`; a film's is its `title`",
    "quality": "it is `preset`, under `engine:`: quality, fast or draft",
}

_LARGER = "the model makes 480p and 720p; render at 720p and enlarge the finished film with another program"
_LARGE_NAMES = re.compile(r"(1080|1440|2160)[pi]?|[248]k|fhd|uhd|full ?hd", re.IGNORECASE)
_PAIR = re.compile(r"(\d{1,5}) ?[x*×:/, ] ?(\d{1,5})", re.IGNORECASE)


def other_name(name: str) -> str:
    """What to write instead of a field that other tools have; empty for an unknown one."""
    return _NAMES.get(name.lower().replace("-", "_"), "")


def other_transition(value: object) -> str:
    """What to write instead of an editor's transition, as `dip to black 1s`; empty for what is none."""
    found = _WRITTEN.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        return ""
    name = re.sub(r"[^a-z]", "", found["name"].lower())
    for names, form, length in _TRANSITIONS:
        if name in names:
            seconds = f"{found['seconds']}s" if found["seconds"] else length
            return f"write `transition: {form.format(seconds)}`"
    return ""


def other_size(value: object) -> str:
    """What to write instead of a size in another form; empty if the value is no size."""
    if not isinstance(value, str):
        return ""
    text = value.strip()
    if _LARGE_NAMES.fullmatch(text):
        return _LARGER
    pair = _PAIR.fullmatch(text)
    if pair is None:
        return f"write {text.lower()}" if text.lower() in ("480p", "720p") else ""
    width, height = int(pair[1]), int(pair[2])
    if max(width, height) > 64:
        return f"write {width}x{height}"
    if width == height:
        return "is a ratio; write a size, as 640x640"
    return f"is a ratio; write a size, as {'480x832' if height > width else '832x480'}"


def size_problem(value: object) -> str:
    """Why a value is not a size, and what to write instead."""
    hint = other_size(value) or "write width x height, as 832x480, or 480p or 720p"
    return f"{format_value(value)} {'' if hint.startswith('is a ratio') else 'is not a size; '}{hint}"
