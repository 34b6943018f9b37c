"""English phrases of the music profile, graded from very low to very high.

No phrase names a key or a word made from one, a digit or a number word. Slots: `adj` stands before a noun and after
"it is"; `with_` after "with" and "there should be"; `should` after "it should" and "I want it to"; `feel` after
"it should feel like" and "I imagine".
"""

from ppe_lora.corpus.teachers.phrases import Occasion, band

PHRASES = {
    "energy": (
        band(
            adj="barely moving | almost motionless | utterly still",
            with_="no push at all | a pulse so slow it nearly stops",
            should="stay almost completely still | hardly breathe from start to finish",
            feel="a house where everyone is fast asleep | a frozen pond",
        ),
        band(
            adj="very drowsy | deeply restful | very sleepy",
            with_="very slow, drifting drums | hardly any beat",
            should="move at the pace of falling snow | help me doze off",
            feel="a lullaby heard through a wall | the last minutes before sleep",
        ),
        band(
            adj="unhurried | calm | easygoing",
            with_="a slow, lazy beat | soft brushes on the drums",
            should="take its time | stay calm and never rush",
            feel="a slow boat on a quiet lake | a long nap",
        ),
        band(
            adj="relaxed | fairly mellow | gently swaying",
            with_="a gentle, rocking beat | a laid-back groove",
            should="stroll rather than run | sway a little without ever pushing",
            feel="an idle walk after a meal | a porch swing",
        ),
        band(
            adj="easy-rolling | moderately paced | lightly bouncing",
            with_="a steady walking beat | a light bounce in the rhythm",
            should="keep a comfortable walking pace | get my foot tapping a little",
            feel="a brisk walk through town | a bicycle on a flat road",
        ),
        band(
            adj="lively | upbeat | spirited",
            with_="a lively, skipping beat | drums with some drive",
            should="keep things moving along | get me nodding my head",
            feel="a busy street market | running down the stairs",
        ),
        band(
            adj="very lively | fast-moving | hard-driving",
            with_="a driving, punchy beat | fast and forceful drums",
            should="get everyone up and dancing | push forward hard",
            feel="a race down a steep hill | a packed dance floor",
        ),
        band(
            adj="absolutely explosive | frantic | wildly intense",
            with_="relentless, pounding drums | a furious, breakneck beat",
            should="hit me like a hurricane | go flat out and never let up",
            feel="a stadium losing its mind | a rocket at lift-off",
        ),
    ),
    "warmth": (
        band(
            adj="ice-cold | utterly heartless | frozen-hearted",
            with_="an icy, hostile tone | no tenderness whatsoever",
            should="leave me shivering | shut everybody out",
            feel="a steel corridor in winter | bare ice against the skin",
        ),
        band(
            adj="very cold | chilly | unfeeling",
            with_="a cold, hard edge | a chilly, clinical tone",
            should="sound cold to the touch | refuse to comfort anyone",
            feel="a stranger's blank stare | a hospital corridor",
        ),
        band(
            adj="cool | aloof | detached",
            with_="a cool, reserved voice | a rather distant tone",
            should="keep a cool distance | hold its feelings back",
            feel="a curt nod from across the room | a marble lobby",
        ),
        band(
            adj="slightly cool | somewhat reserved | mildly distant",
            with_="a faintly cool touch | only a trace of tenderness",
            should="stay a touch reserved | stop short of cuddling",
            feel="small talk with a new neighbour | a crisp cotton sheet",
        ),
        band(
            adj="quite friendly | kindly | mildly tender",
            with_="a friendly, easy tone | some tenderness around the edges",
            should="be kind without getting sentimental | sound like good company",
            feel="a chat with a good neighbour | a cup of tea",
        ),
        band(
            adj="caring | soft-hearted | comforting",
            with_="a soft, caring voice | plenty of tenderness",
            should="put a kind hand on my shoulder | comfort me",
            feel="a pat on the back from a friend | a woollen sweater",
        ),
        band(
            adj="very cosy | tender | deeply comforting",
            with_="a tender, embracing tone | a cosy, caring voice",
            should="wrap me in a thick blanket | hold me close",
            feel="a cosy seat by the fireplace | bread fresh from the oven",
        ),
        band(
            adj="overwhelmingly loving | meltingly tender | utterly cosy",
            with_="endless tenderness in every note | a loving, all-embracing voice",
            should="melt even a heart of stone | hug me so tightly that I never want to leave",
            feel="the longest hug in the world | being held by someone who loves me",
        ),
    ),
    "brightness": (
        band(
            adj="pitch-dark | bleak | utterly gloomy",
            with_="no light anywhere | chords as black as coal",
            should="sink into total darkness | leave every lamp switched off",
            feel="a cellar with no windows | the bottom of the sea",
        ),
        band(
            adj="very dark | sombre | brooding",
            with_="dark, heavy chords | a sombre, sunless colour",
            should="stay in the shadows | brood over every chord",
            feel="a storm cloud right overhead | a candle about to go out",
        ),
        band(
            adj="shadowy | dim | rather dark",
            with_="dim, muted colours | shadowy low notes",
            should="keep the lights low | lean towards the shadows",
            feel="a forest under thick cloud | a dim back room",
        ),
        band(
            adj="slightly shaded | softly dim | faintly grey",
            with_="slightly muted colours | a faint veil over the sound",
            should="stay slightly in the shade | keep a thin cloud over the sun",
            feel="a pale, overcast sky | light behind a curtain",
        ),
        band(
            adj="softly lit | fairly clear | faintly glowing",
            with_="fairly clear, soft colours | a hint of light in the melody",
            should="bring in some daylight | stay on the clear side",
            feel="sun through thin clouds | a room with the curtains open",
        ),
        band(
            adj="sunny | cheerful | sunlit",
            with_="cheerful, clear chords | a sunny melody",
            should="bring the sunshine in | smile most of the time",
            feel="a sunny window seat | a clear spring sky",
        ),
        band(
            adj="very sunny | sparkling | gleaming",
            with_="sparkling high notes | glittering bells on top",
            should="sparkle like sunlit water | beam from ear to ear",
            feel="a beach in full sunshine | a field of sunflowers",
        ),
        band(
            adj="dazzling | blindingly radiant | brilliantly shining",
            with_="dazzling, crystal-clear high notes | blinding light in every chord",
            should="dazzle like the midsummer sun | shine so hard that I need sunglasses",
            feel="fireworks filling the whole sky | a mirror ball under a spotlight",
        ),
    ),
    "acousticness": (
        band(
            adj="fully electronic | purely synthetic | totally machine-made",
            with_="nothing but synthesizers and drum machines | no real instruments at all",
            should="sound as if no human ever touched it | come entirely out of machines",
            feel="a robot factory | the inside of a computer",
        ),
        band(
            adj="very electronic | heavily synthesized | strongly digital",
            with_="synthesizers all over the place | electronic beats and lots of synth bass",
            should="lean heavily on synths | be built almost wholly on a computer",
            feel="a neon arcade | a club with lasers",
        ),
        band(
            adj="mostly electronic | rather digital | synth-led",
            with_="synth pads and a programmed beat | electric guitars and synths up front",
            should="be mainly electronic | favour synths over real strings",
            feel="a DJ set in a small bar | a video game menu",
        ),
        band(
            adj="partly electronic | lightly electronic | slightly digital",
            with_="electric piano and a few synths | a plugged-in guitar and light programming",
            should="mix some electronics into the band | be slightly more plugged-in than not",
            feel="a band with a laptop on stage | a rehearsal room full of amps",
        ),
        band(
            adj="lightly unplugged | partly hand-played | fairly organic",
            with_="a real band and just a few electronics | live drums next to a soft synth",
            should="be slightly more unplugged than not | put live players before the machines",
            feel="a small live band in a bar | a jam session with a quiet keyboard",
        ),
        band(
            adj="mostly unplugged | hand-played | organic",
            with_="piano, upright bass and brushes | mostly wooden instruments",
            should="be mainly played by hand | favour real strings over synths",
            feel="a folk club | musicians in a living room",
        ),
        band(
            adj="very organic | wooden-sounding | fully hand-played",
            with_="wooden guitar and fiddle | strings, piano and no synths",
            should="make me hear fingers on the strings | stay away from anything electronic",
            feel="friends strumming on a back porch | a string group in a small church",
        ),
        band(
            adj="entirely unplugged | purely wood-and-string | completely natural-sounding",
            with_="only bare wood and strings | nothing that needs a socket",
            should="work just as well in a power cut | use not a shred of electricity",
            feel="a guitar by the campfire | a fiddler in a barn",
        ),
    ),
    "complexity": (
        band(
            adj="extremely simple | bare-bones | utterly minimal",
            with_="hardly more than a lonely note at a time | no decoration whatsoever",
            should="be so simple that a toddler could hum it | repeat the same tiny idea throughout",
            feel="a blank sheet of paper | a nursery rhyme",
        ),
        band(
            adj="very simple | very sparse | pared-down",
            with_="very few notes | a very plain tune and little else",
            should="leave lots of empty space | stick to the plainest chords",
            feel="a line drawing | an empty white room",
        ),
        band(
            adj="simple | uncluttered | plain",
            with_="a simple tune | just a few clear parts",
            should="stay simple | be easy to follow",
            feel="a tidy desk | a short handwritten note",
        ),
        band(
            adj="fairly simple | lightly arranged | quite straightforward",
            with_="a fairly simple arrangement | a few small touches here and there",
            should="stay fairly easy to follow | add only a few small details",
            feel="a neat little garden | a pencil sketch with some colour",
        ),
        band(
            adj="lightly detailed | moderately layered | nicely arranged",
            with_="a handful of layers | some interesting chords",
            should="have a bit of detail to discover | offer some small surprises",
            feel="a patterned rug | a short story with a twist",
        ),
        band(
            adj="detailed | layered | richly arranged",
            with_="several interwoven parts | plenty of chord changes",
            should="reward careful listening | keep adding new layers",
            feel="a well-made clock | a crowded painting",
        ),
        band(
            adj="very intricate | densely layered | sophisticated",
            with_="intricate, interlocking rhythms | lots of tricky chord changes",
            should="twist and turn all the time | pile melody upon melody",
            feel="a huge jigsaw puzzle | an ant hill seen up close",
        ),
        band(
            adj="bewilderingly intricate | maze-like | wildly elaborate",
            with_="dizzying odd meters and endless counter-melodies | a maze of overlapping rhythms",
            should="baffle even a music professor | change meter and texture constantly",
            feel="a maze with no exit | a cathedral covered in carvings",
        ),
    ),
    "nostalgia": (
        band(
            adj="ultra-modern | futuristic | brand-new",
            with_="no trace of the past | a sound nobody has ever heard before",
            should="sound as if it came from the future | forget that yesterday ever existed",
            feel="a spaceship on its maiden voyage | a city that has not been built yet",
        ),
        band(
            adj="very modern | cutting-edge | up-to-the-minute",
            with_="very modern production | the newest sounds around",
            should="sound like next year's hits | look only ahead",
            feel="a glass skyscraper | a phone fresh out of its box",
        ),
        band(
            adj="modern | current | contemporary",
            with_="a modern, up-to-date sound | today's kind of production",
            should="sound like today's charts | live in the here and now",
            feel="a new café downtown | a fresh coat of paint",
        ),
        band(
            adj="fairly modern | mostly current | largely present-day",
            with_="a fairly modern sound | a mostly current style",
            should="stay mostly in the present | glance back only briefly",
            feel="a snapshot from last week | a recent favourite",
        ),
        band(
            adj="slightly retro | faintly wistful | mildly old-fashioned",
            with_="a slight retro touch | a faint hint of old times",
            should="glance back a little | remind me a bit of older songs",
            feel="a photo from some years ago | a slightly faded shirt",
        ),
        band(
            adj="wistful | retro | vintage",
            with_="a retro, vintage sound | a wistful backward glance",
            should="bring back some memories | remind me of the old days",
            feel="a postcard found in a drawer | an old neighbourhood",
        ),
        band(
            adj="very wistful | memory-laden | sepia-toned",
            with_="the crackle of an old record | a very old-time melody",
            should="take me back to my childhood | stir up old memories",
            feel="leafing through an old photo album | my grandparents' kitchen",
        ),
        band(
            adj="achingly wistful | memory-soaked | heartbreakingly homesick",
            with_="all the ache of days that will never return | a longing for everything long gone",
            should="make me weep for days long gone | carry me all the way back to when I was small",
            feel="the playground of a school that closed long ago | a letter from someone long gone",
        ),
    ),
}

OCCASIONS = (
    Occasion("a rainy night at home", ("home", "night", "rainy"), 0, 0.7, "rain", "night"),
    Occasion("watching the rain from my window", ("home", "rainy"), 0, 0.7, "rain"),
    Occasion("the walk home after the rain", ("rainy", "walk"), 0.1, 0.8, "rain"),
    Occasion("my train ride to work", ("commuting", "morning"), 0.1, 1, None, "morning"),
    Occasion("the crowded bus home", ("commuting", "evening"), 0.1, 0.9, None, "evening"),
    Occasion("my commute", ("commuting",)),
    Occasion("falling asleep", ("night", "sleep"), 0, 0.35, None, "night"),
    Occasion("the quiet hours after midnight", ("night",), 0, 0.6, None, "night"),
    Occasion("driving through the city late at night", ("drive", "night"), 0.2, 1, None, "night"),
    Occasion("a morning run", ("morning", "workout"), 0.6, 1, None, "morning"),
    Occasion("lifting weights", ("workout",), 0.65),
    Occasion("a house party", ("night", "party"), 0.6, 1, None, "night"),
    Occasion("studying", ("study",), 0, 0.7),
    Occasion("reading a novel", ("reading",), 0, 0.6),
    Occasion("cooking dinner", ("cooking", "evening"), 0.15, 0.9, None, "evening"),
    Occasion("a lazy breakfast", ("morning",), 0, 0.6, None, "morning"),
    Occasion("a snowy evening", ("evening", "snowy"), 0, 0.7, "snow", "evening"),
    Occasion("a drive along the coast", ("drive", "seaside"), 0.25, 1, "sunny"),
    Occasion("a picnic in the park", ("picnic",), 0.2, 0.9, "sunny"),
    Occasion("working on my laptop", ("work",), 0, 0.85),
    Occasion("tidying my room", ("chores", "home"), 0.25),
    Occasion("the title screen of my game", ("gaming",)),
    Occasion("the village scene in my game", ("gaming",), 0, 0.7),
    Occasion("the final battle in my game", ("gaming",), 0.6),
    Occasion("a long train journey", ("travel",), 0, 0.85),
    Occasion("a walk at sunset", ("evening", "walk"), 0, 0.7, None, "evening"),
    Occasion("a small café", ("cafe",), 0, 0.7),
    Occasion("my sister's wedding video", ("celebration", "video"), 0.1, 0.95),
    Occasion("editing holiday photos", ("travel", "work"), 0.1, 0.9),
    Occasion("the end of a hard week", ("evening",), 0, 0.9),
)

OPENERS = {
    "polite": (
        "Could you please make",
        "I would like",
        "Would you mind composing",
        "I would be grateful for",
        "May I ask for",
        "Please compose",
        "Would it be possible to get",
        "I am looking for",
        "I was hoping for",
    ),
    "casual": (
        "hey, can you make",
        "gimme",
        "I want",
        "can I get",
        "I'm in the mood for",
        "so, I need",
        "how about",
        "let's do",
        "play me",
        "I could really use",
    ),
    "short": ("", "", "", "", "need", "want", "play", "looking for", "make", "make me"),
}
QUESTIONS = ("Could", "Would", "May", "hey, can", "can", "how about")
"""How openers begin that ask, and so end in a question mark."""

CLOSINGS = {
    "polite": (
        "Thank you very much.",
        "Thank you in advance.",
        "That would be wonderful.",
        "I would really appreciate it.",
        "Many thanks for your help.",
    ),
    "casual": ("thanks!", "you know what I mean?", "surprise me with the rest.", "cheers", "that'd be great.", "ok?"),
}
BACKGROUNDS = (
    "I run a small bakery by the station.",
    "I have just moved to a new town.",
    "My daughter and I draw together every weekend.",
    "I am making a small game with some friends.",
    "I write stories in my spare time.",
    "It has been a strange week at work.",
    "I teach at a primary school.",
    "My partner is away and the flat is quiet.",
    "I am putting together a short film.",
    "I spend most of my day in front of a screen.",
    "My band is looking for fresh ideas.",
    "I look after my garden whenever I can.",
    "I have been listening to the same playlist for months.",
    "We are redecorating our shop this month.",
)
REASONS = (
    "I need music for {occasion}.",
    "The music is for {occasion}.",
    "I am looking for something to go with {occasion}.",
    "What I have in mind is a soundtrack for {occasion}.",
    "It is meant for {occasion}.",
)
NOUNS = ("song", "tune", "piece", "track", "soundtrack")
