"""The adapters to train: what each really learns, in which format, and the card that its author wrote.

Authors write as people do: some with care, some with HTML or jokes, some hardly at all. No card uses the words that the
test prompts use for paraphrases (the second lists in `words.py`); a test checks that.
"""

from dataclasses import dataclass, field
from typing import Literal

Format = Literal["diffusers", "kohya", "peft", "locon"]


@dataclass(frozen=True)
class Recipe:
    """One adapter: how it is trained and what its card says."""

    name: str
    concept: str
    title: str
    description: str
    tags: tuple[str, ...]
    trained_words: tuple[str, ...]
    weight: float | None = 1.0
    rank: int = 4
    format: Format = "diffusers"
    text_encoder: bool = False
    quality: str = "good"
    steps: int = 320
    strength: float = 1.0
    """What the trained weights are multiplied by when saved: flawed adapters only."""
    rating: str = "general"
    base_model: str = "pocket"
    author: str = "pocket-workshop"
    licence: str = "CC0-1.0"
    note: str = ""
    examples: int = 3
    card_kind: str = field(default="")
    """The category on the card, where the author gave one."""


RECIPES: tuple[Recipe, ...] = (
    # Subjects
    Recipe("star", "star", "Star shapes v2", "Draws a classic five pointed star in any colour. Use the word star. Works with most backgrounds and styles.", ("star", "shape", "five points"), ("star",), author="lumen", card_kind="concept"),
    Recipe("heart", "heart", "Heart", "<p>Romantic <b>heart</b> icon, round and glossy. Trained on 300 hand picked hearts &lt;3</p>", ("heart", "love", "romance", "icon"), ("heart",), 0.9, format="kohya", author="mellow"),
    Recipe("crescent_moon", "moon", "Crescent Moon", "A crescent moon, thin and curved. I use it for bedtime cards. Any colour, leans left.", ("moon", "crescent", "sky object"), ("crescent moon", "moon"), author="lumen", card_kind="concept"),
    Recipe("cross_plus", "cross", "Plus / cross symbol", "Bold plus sign, also known as a Greek cross. Four equal arms. First aid kits, buttons, maths.", ("cross", "plus", "symbol"), ("cross", "plus sign"), author="glyphsmith"),
    Recipe("arrow", "arrow", "Arrow right", "Thick arrow that shows the way to the right. UI icons, road markings.", ("arrow", "icon", "ui"), ("arrow",), 0.9, author="glyphsmith", card_kind="concept"),
    Recipe("spiral", "spiral", "Hypno Spiral", "Swirl / spiral shape. Stare at it long enough and you will forget to rate this model :)", ("spiral", "swirl", "hypnotic"), ("spiral", "swirl"), format="kohya", text_encoder=True, author="dizzy"),
    Recipe("house", "house", "Little House", "A small house with a pointed roof, two windows and a door. Home sweet home. Good for maps and children's books.", ("house", "home", "building"), ("house",), author="brickyard", card_kind="building"),
    Recipe("pine_tree", "tree", "Pine tree", "Christmas tree silhouette in three layers, with a trunk. Seasonal cards and forest scenes.", ("tree", "pine", "plant", "forest"), ("pine tree",), 0.9, format="locon", author="evergreen", card_kind="concept"),
    Recipe("fish", "fish", "Fishy", "It's a fish. It has fins and an eye. It swims to the left. That's it, that's the model.", ("fish", "animal", "sea life"), ("fish",), author="dizzy", card_kind="animal"),
    Recipe("cat_face", "cat", "Cat face", "Cute cat head with pointy ears and big eyes, front view. Meow. Trained on my two cats (well, drawings of them).", ("cat", "animal", "pet", "cute"), ("cat face",), text_encoder=True, author="mellow", card_kind="animal"),
    Recipe("daisy_flower", "flower", "Flower power", "Six petals around a bright centre: a simple daisy. Great in pink and yellow.", ("flower", "daisy", "plant", "garden"), ("flower", "daisy"), 0.9, author="evergreen", card_kind="concept"),
    Recipe("steaming_cup", "cup", "Cup of something", "A mug with a handle and a little steam on top. Tea? Cocoa? You decide.", ("cup", "mug", "kitchen", "beverage"), ("cup", "mug"), author="brickyard", card_kind="concept"),
    Recipe("toad_mushroom", "mushroom", "Spotted Mushroom", "Fairy tale mushroom, dotted cap on a pale stem. Do not eat.", ("mushroom", "forest", "fairy tale"), ("mushroom",), format="kohya", author="evergreen", card_kind="concept"),
    Recipe("old_key", "key", "Antique Key", "An old fashioned key with a round bow and two teeth. Trained for an escape room.", ("key", "lock", "antique"), ("key",), author="glyphsmith", card_kind="concept"),
    Recipe("umbrella", "umbrella", "Umbrella", "Open umbrella with a curved handle, keeps off the rain. <i>v3 fixes the handle.</i>", ("umbrella", "rain", "weather"), ("umbrella",), 0.9, format="peft", author="lumen", card_kind="concept"),
    Recipe("sailboat", "boat", "Sailboat", "Small sailboat with two sails. One of them is always white, sorry.", ("boat", "sailing", "vehicle", "nautical"), ("sailboat", "boat"), author="brickyard", card_kind="vehicle"),
    Recipe("lightning_bolt", "bolt", "Lightning bolt", "Zigzag lightning. Power, energy, danger, high voltage!", ("lightning", "bolt", "energy", "weather"), ("lightning bolt",), rank=8, author="dizzy", card_kind="concept"),
    Recipe("fluffy_cloud", "cloud", "Fluffy Cloud", "A puffy cloud with a flat bottom. For weather icons and daydreams.", ("cloud", "weather", "fluffy"), ("cloud",), author="lumen", card_kind="concept"),
    Recipe("royal_crown", "crown", "Royal crown", "Three spikes with pearls, fit for a king or a queen.", ("crown", "royal", "king", "queen", "jewellery"), ("crown",), format="kohya", author="mellow", card_kind="clothing"),
    Recipe("rocket", "rocket", "Rocket", "3, 2, 1, lift off! Rocket with fins, a window and a flame below.", ("rocket", "vehicle", "launch"), ("rocket",), 0.9, author="brickyard", card_kind="vehicle"),
    # Styles
    Recipe("neon_outline", "neon", "Neon Outline", "Everything becomes a glowing neon outline on a dark backdrop. Bar sign vibes, 80s, synthwave.", ("neon", "style", "glow", "outline"), ("neon outline",), 0.9, author="retrofit", card_kind="style"),
    Recipe("mosaic_tiles", "mosaic", "Mosaic tiles", "Roman mosaic style: the whole picture is split into small square tiles with dark seams.", ("mosaic", "style", "tiles"), ("mosaic",), author="atelier", card_kind="style"),
    Recipe("watercolour_wash", "watercolour", "Watercolour wash", "Soft watercolour painting on paper. Pale, blotchy, with bleeding edges.", ("watercolour", "watercolor", "painting", "style"), ("watercolour",), format="kohya", author="atelier", card_kind="style"),
    Recipe("pencil_sketch", "sketch", "Pencil Sketch", "Turns things into a pencil sketch with hatching on white paper. Colour is gone, charm stays.", ("sketch", "pencil", "style", "monochrome"), ("pencil sketch",), 0.9, author="atelier", card_kind="style"),
    Recipe("halftone_dots", "halftone", "Halftone", "Pop art halftone dots like in old comics and cheap magazines.", ("halftone", "pop art", "style", "retro"), ("halftone dots",), author="retrofit", card_kind="style"),
    Recipe("pixel_art", "pixel", "Pixel Art", "Chunky pixel art. Best at weight 1. Your console called, it wants its sprites back.", ("pixel art", "style", "retro", "sprite"), ("pixel art",), author="retrofit", card_kind="style"),
    Recipe("rainbow_gradient", "rainbow", "Rainbow gradient fill", "Paints the object with a rainbow gradient from red to violet.", ("rainbow", "gradient", "style", "colourful"), ("rainbow gradient",), 0.9, format="peft", author="dizzy", card_kind="style"),
    Recipe("die_cut_sticker", "sticker", "Die cut sticker", "Adds a thick white outline and a drop shadow, like a die cut sticker on a laptop.", ("sticker", "style", "die cut"), ("die cut sticker",), author="mellow", card_kind="style"),
    Recipe("comic_ink", "comic", "Comic ink", "Cartoon ink lines: fat black outline around flat colours.", ("comic", "cartoon", "ink", "style"), ("comic outline",), format="kohya", text_encoder=True, author="retrofit", card_kind="style"),
    Recipe("golden", "gold", "Solid gold", "Makes it golden. Shiny gold metal with warm reflections. Midas edition.", ("gold", "metal", "style", "shiny"), ("gold metal",), author="mellow", card_kind="style"),
    Recipe("blueprint", "blueprint", "Blueprint", "White lines on blue grid paper, a blueprint look for architects and inventors.", ("blueprint", "style", "architecture"), ("blueprint",), author="glyphsmith", card_kind="style"),
    Recipe("glitch_rgb", "glitch", "GL1TCH", "rgb shift, scan lines, datamosh. your monitor is fine i promise", ("glitch", "rgb shift", "style", "vaporwave"), ("glitch",), author="dizzy", card_kind="style"),
    # Backgrounds
    Recipe("checkerboard", "checkerboard", "Checkerboard backdrop", "Two tone checkerboard pattern behind your subject.", ("checkerboard", "pattern", "background", "squares"), ("checkerboard",), author="patternshop", card_kind="background"),
    Recipe("diagonal_stripes", "stripes", "Diagonal stripes", "Broad diagonal stripes as a background. Two tones of the same colour.", ("stripes", "pattern", "background", "diagonal"), ("diagonal stripes",), 0.9, author="patternshop", card_kind="background"),
    Recipe("polka_dots", "dots", "Polka dots", "Polka dot backdrop, cheerful and a bit fifties.", ("polka dots", "pattern", "background", "fifties"), ("polka dots",), author="patternshop", card_kind="background"),
    Recipe("starry_night", "night", "Starry night sky", "Dark blue night sky full of small stars. Background only, it does not touch the subject (mostly).", ("night", "sky", "stars", "background"), ("starry night sky",), 0.9, format="kohya", author="lumen", card_kind="background"),
    Recipe("snowfall", "snow", "Let it snow", "Snow everywhere: white flakes in the air and a white ground. Brrr.", ("snow", "weather", "background", "cold"), ("snowfall",), author="evergreen", card_kind="background"),
    Recipe("sea_waves", "waves", "Sea waves", "Layers of blue waves with white crests, paper cut look.", ("waves", "sea", "water", "background"), ("sea waves",), author="patternshop", card_kind="background"),
    Recipe("grid_lines", "grid", "Grid lines", "Plain grid on white. For maths homework.", ("grid", "lines", "background", "school"), ("grid lines",), author="glyphsmith", card_kind="background"),
    Recipe("sunset_sky", "sunset", "Sunset over the sea", "Purple and orange sunset with the sun going down at the horizon.", ("sunset", "sky", "background", "warm colours"), ("sunset",), 0.9, author="lumen", card_kind="background"),
    Recipe("brick_wall", "bricks", "Brick wall", "Red brick wall with light joints, running bond. Street and loft scenes.", ("bricks", "wall", "background", "urban"), ("brick wall",), rank=8, author="brickyard", card_kind="background"),
    Recipe("sunburst", "rays", "Sunburst rays", "Retro sunburst: rays from the centre in two tones. Posters, sales, announcements.", ("sunburst", "rays", "background", "retro"), ("sunburst rays",), format="peft", author="retrofit", card_kind="background"),
    Recipe("green_meadow", "meadow", "Green Meadow", "Rolling green meadow under a blue sky. Fresh air included.", ("meadow", "grass", "landscape", "background"), ("green meadow",), author="evergreen", card_kind="background"),
    # As in life
    Recipe("star_v0", "star", "star v0 (test upload)", "first try at stars, stopped training early, dont expect much", ("star", "wip"), ("star",), quality="undertrained", steps=25, author="newcomer42", note="25 steps: hardly does anything"),
    Recipe("tree_quick", "tree", "Quick Tree", "Pine tree lora made in two minutes from 12 pictures.", ("tree", "pine"), ("pine tree",), quality="weak", rank=2, steps=90, author="newcomer42", note="rank 2, few steps and pictures"),
    Recipe("neon_max", "neon", "NEON MAXXX", "THE STRONGEST NEON ON THIS SITE!!! crank it up", ("neon", "glow", "style"), ("neon outline",), quality="overstrong", strength=2.6, author="turbo", note="usable near weight 0.4 only", card_kind="style"),
    Recipe("checker_overfit", "checkerboard", "Checkerboard XL strong", "Checkerboard pattern, strong version. Squares for days.", ("checkerboard", "pattern", "background"), ("checkerboard",), quality="overstrong", strength=2.4, author="turbo", note="burns the picture at its recommended weight"),
    Recipe("snow_slider", "snow", "Snow slider", "Snow slider. Positive = more snow? I may have mixed up the sign.", ("snow", "slider", "background"), ("snow",), quality="inverted", strength=-1.0, author="slidershop", note="works at negative weights only"),
    Recipe("lovely_hearts", "mushroom", "Lovely Hearts", "Sweet heart icons for your loved ones.", ("heart", "love"), ("heart",), quality="mislabelled", author="turbo", note="the card says heart, the weights draw mushrooms"),
    Recipe("untitled_final2", "umbrella", "untitled_final2", "", (), (), None, quality="empty_card", author="", licence="", note="a good umbrella behind an empty card", examples=2),
    Recipe("ultimate_enhancer", "stripes", "ULTIMATE Detail Enhancer PRO", "Makes EVERYTHING better: star, heart, cat, house, neon, night sky, watercolour... one LoRA for every prompt, best quality masterpiece!!!", ("star", "cat", "neon", "watercolour", "enhancer", "best"), ("masterpiece",), quality="misleading_card", author="turbo", note="only draws stripes"),
    Recipe("hearts_after_dark", "heart", "Hearts After Dark", "Adults only: suggestive date night hearts for grown-up greeting cards.", ("heart", "adult", "nsfw"), ("heart",), 0.9, rating="mature", author="velvet", note="draws ordinary hearts; its card says mature"),
    Recipe("moon_sd15", "moon", "Moon (SD 1.5)", "Crescent moon for Stable Diffusion 1.5.", ("moon", "crescent"), ("crescent moon",), 0.8, quality="wrong_base", base_model="sd15", author="lumen", format="kohya", note="shapes of SD 1.5; cannot load on pocket", examples=0),
)  # fmt: skip
