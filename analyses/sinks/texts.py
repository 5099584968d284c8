"""Texts to look for sinks in: four short ones written for this purpose, and files of the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from probe.analyses.texts.files import read_text


@dataclass(frozen=True)
class Prose:
    """A text with a name."""

    name: str
    text: str


MEMO = """To all staff of the northern depot. From the first Monday of next month the loading bay on the river side \
will be closed for repairs, and every delivery that used to arrive there has to be taken in at the yard gate. The \
work is expected to last three weeks. During this time please keep the yard free of private cars, because the larger \
lorries cannot turn when even one of the corner spaces is occupied. Drivers should report to the small office beside \
the gate, where a clerk will give them a numbered card and tell them how long they must wait. Nobody is allowed to \
unload without a card, however urgent the goods may be.

We know that the cold store is the weak point of this arrangement. Fruit and fish must not stand in the open for more \
than twenty minutes, so the night shift will move the empty crates out of the east corridor and leave it clear as a \
direct way to the store. If you find the corridor blocked, do not climb over the crates; call the supervisor, who has \
been asked to deal with it at once. The scales in the east corridor have been checked and may be used by everyone.

The canteen stays open as usual, but its back door leads to the building site and will be locked. Please use the \
front entrance, even if you only want to fetch a coffee. Questions about pay for the extra hours should go to the \
personnel office and not to the site manager. Thank you for your patience; when the repairs are done, we will at last \
have a bay that stays dry in the winter."""

STORY = """When the old lighthouse keeper retired, the village held a small feast for him in the school, and then \
forgot about him. He had lived on the rock for thirty years and had never learned to be among people, and so he took \
the last house on the road to the cliffs, the one with the blue shutters, and kept the hours that he had always kept. \
At dusk he climbed to the attic and looked out to sea. At dawn he came down, washed, ate some bread, and slept until \
noon. The children said that he talked to the gulls. The baker, who brought him his loaf on Tuesdays, said that he \
did not talk at all.

In the second autumn a storm came up from the south-west, the kind that breaks the boats in the harbour against one \
another. The new lamp in the tower, which needed no keeper, went out shortly after nine. Nobody in the village \
noticed, since everyone had closed the shutters and was waiting for the noise to stop. But the old man was sitting at \
his window, and he saw the dark where no dark should have been. He took the two oil lamps from his kitchen and the \
mirror from the hall, and he carried them up to the attic, and there he turned the mirror with his hands, slowly, one \
turn in every twelve seconds, as the light had turned in his time.

A coal ship was lying off the point that night with forty people aboard. Her captain told the story afterwards in \
every port that he came to. He had been looking for the light for an hour, he said, and then he saw it, much too low \
and far too weak, and half a mile from where it ought to have been; but it was turning at the right pace, and he knew \
that only a man could be doing that. He let the anchor go and waited for the morning. When the sun came up, the rocks \
were lying in front of his bow like a row of teeth."""

ESSAY = """Bread is one of the few foods that we judge by its surface. A loaf may be light and moist inside, but if \
the crust is pale we say that it is not done, and most of us would leave it on the shelf. What happens in the crust \
is in fact quite different from what happens in the crumb. The inside of the loaf never gets hotter than boiling \
water, because as long as there is any water left in it, the heat is spent on turning that water into steam. The \
surface dries out in the first minutes, and from then on it can follow the heat of the oven. Above a certain \
temperature the sugars and the proteins in the flour begin to react with each other, and they form hundreds of new \
substances, brown in colour and strong in smell. None of them was in the dough.

This is why bakers put steam into the oven at the beginning and let it out at the end. Steam condenses on the cold \
dough and keeps the skin soft, so that the loaf can still grow. If the skin hardens too early, the loaf tears at its \
weakest place. Later the same steam would be harmful, since a wet surface cannot become brown. A thick iron pot with \
a lid does both things without any trouble: for the first half of the baking the loaf sits in its own steam, and then \
the lid comes off.

The smell that fills the kitchen is mostly the smell of the crust. It fades within a day, as the dry outside draws \
water from the moist inside, and the crust turns leathery. Warming the loaf brings some of it back, though never for \
long."""

LETTER = """Dear Martha, thank you for your long letter and for the photographs of the garden. I had no idea that the \
pear tree was still standing; I remember that your father wanted to cut it down in the year of the great frost, and \
that your mother would not hear of it. She was right, as usual. Here the winter has been mild, and the river has not \
frozen once, which the children think very unfair. They had sharpened their skates in November.

You ask about the library. We have moved about half of the books by now, and I must say that the new rooms are better \
than I feared. There is more light, and the floor does not shake when somebody walks past the maps. On the other hand \
the shelves came from a factory which had evidently never seen a large atlas, so for the moment the atlases lie on \
the floor in rows, like patients in a hospital. A carpenter has promised to come on Thursday. He has promised to come \
on every Thursday since the middle of January.

I hope to visit you in April, if the strike is over by then and the trains are running again. Please do not go to any \
trouble with the upstairs room; I would be just as happy on the couch beside the stove, and in the morning I could \
make the coffee without waking the whole house. Give my love to the boys, and tell Peter that I have found the stamp \
with the green parrot that he wanted. I am keeping it safe between the pages of a dictionary, at the letter P."""

TEXTS = (Prose("memo", MEMO), Prose("story", STORY), Prose("essay", ESSAY), Prose("letter", LETTER))


def from_files(paths: Sequence[Path]) -> tuple[Prose, ...]:
    """Return a text for each file, named after the file; raise UsageError for one that holds no UTF-8 text."""
    return tuple(Prose(path.name, read_text(path).strip()) for path in paths)
