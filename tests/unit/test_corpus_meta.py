"""Answers that are not requests: refusals, talk about the request, wrapping; and requests that only look like them.

A text per line; `\\n` stands for a line break. Half of the answers in new wordings are missed at first sight (LOG.md),
so look at the kept rows of a new teacher.
"""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppe_lora.corpus.filters import Evidence, empty, meta_answer
from ppe_lora.corpus.meta import find_meta
from ppe_lora.corpus.rows import Row

META = r"""
Here is a request: something soft for a rainy night.
Here's a request:\nCould you play something slow and gentle?
Here is one possible request that fits: "Play me something mellow."
Sure! Here's a casual request for a rainy evening.
Sure, here is a natural-sounding request:\n\nI want drums that shake the walls.
Certainly! Could you make a tune that feels like a warm blanket?
Of course! Here you go: a lullaby with soft strings, please.
Absolutely! A gentle song for the evening, please.
Okay, here's the text: play something that sparkles.
Sure thing! I'd like something dreamy.
Got it. Here is the message: "make it quieter".
Below is a request written in a polite style: May I have a slow song?
The following is a sample request:\nGive me a song like fog.
I'm sorry, but I can't assist with that request.
I'm sorry, I cannot create content like that.
I am sorry, but I am unable to help with this.
Sorry, I can't help with that.
I apologize, but I can't generate music.
Unfortunately, I am not able to fulfil this request.
I cannot comply with this request.
I can't provide a response to that.
As an AI language model, I don't have preferences, but something calm is nice.
As an AI, I can't hear music.
As a large language model I have no ears, yet here is a wish for soft strings.
I'm just an AI, so I can't feel the rain.
I am an AI assistant and do not have personal feelings.
"Could you play something soft and slow for a rainy night?"
“A gentle song for a train ride at dusk, please.”
'Give me a loud, happy song.'
«Something with quiet strings»
```\nSomething soft for the evening.\n```
```json\n{"request": "a mellow tune"}\n```
{"request": "Play a gentle tune for the rain."}
{"text": "A lively song for the gym"}
["A lively song for the gym", "A slow song"]
**Request:** something soft for the evening
Request: something soft for the evening
User: can you play something soft?
Player: gimme something loud!
Assistant: Here you are.
Output: A calm melody for a winter night.
English: I would like something bright but slow.
# A request\nSomething soft for the evening
- Something soft for the evening
<request>Something soft for the evening</request>
<think>The scores are low, so</think> Something soft for the evening
Can I get a song for [insert occasion]?
Play something for {occasion} that feels light.
The user wants a slow song with a gentle mood.
The listener is asking for a tune that glows.
This request conveys a calm and slow mood.
Play something soft. (Note: this implies a low value without naming it.)
Play something slow and soft.\n\nNote: I avoided numbers as instructed.
Something soft for tonight, please. Let me know if you'd like me to adjust the tone!
Something soft for tonight, please. I hope this helps!
Something soft for tonight. Would you like me to write another version?
How can I assist you today?
What kind of music would you like to hear?
Thank you for your request. We will play something soft.
Okay, the user wants a casual text in English. Something soft.
Let me think about how to phrase this without numbers.
I need to write a request that implies the scores.
以下がリクエストです：静かな曲をお願いします。
以下はリクエストの例です。雨の夜に合う曲をください。
以下のような依頼文はいかがでしょうか。静かな曲をお願いします。
こちらがリクエスト文です。「静かな曲をお願いします」
リクエスト：静かな夜に合う曲をお願いします。
依頼文: もっと激しい曲がいいな
ユーザー：もっと静かな曲ない？
出力：雨の日に聴きたい曲
【依頼文】静かな夜に合う曲をお願いします。
承知いたしました。静かな夜に合う曲をお願いします。
承知しました！以下の通りです。
かしこまりました。雨の日に合う曲を作ります。
はい、わかりました。以下に依頼文を作成します。
もちろんです！静かな曲をお願いします。
申し訳ありません。
申し訳ありませんが、そのご要望にはお応えできません。
申し訳ございませんが、この内容は作成できません。
すみません、そのリクエストには対応できません。
残念ながら、そのような文章を生成することはできません。
恐れ入りますが、お手伝いすることができかねます。
AIとして、私は音楽を聴くことができません。
私はAIなので、感情を持っていません。
AI言語モデルですので、お答えできません。
「雨の夜に合う、静かな曲をお願いします。」
『もっと激しい曲がいい！』
“静かな曲をお願いします”
{"依頼文": "静かな曲をお願いします"}
```\n静かな曲をお願いします\n```
・静かな夜に合う曲をお願いします
静かな曲をお願いします。（注：数値は使っていません）
静かな曲をお願いします。\n\nこの依頼文は、落ち着いた雰囲気を表現しています。
静かな曲をお願いします。\n※数字は含めていません。
静かな曲をお願いします。他にもご希望があればお知らせください。
ユーザーは静かな曲を求めています。
どのような曲をお探しですか？
リクエストありがとうございます。静かな曲ですね。
ご依頼ありがとうございます。
英訳: Please play something quiet.
Sure, I can do that! Here's something in a casual tone: give me a wild song.
Here's a short one: "gimme something loud"
Here's my attempt: Could you play a gentle song?
Here is the rewritten request in Japanese.
Sorry, but I can't do that.
I'm sorry, but as an AI developed by Mistral, I can't feel.
I'm unable to provide that.
I can't fulfill that request.
My apologies, I cannot generate such text.
I don't have enough information to write this.
Please provide more context so I can help you.
Certainly, here is your text.
A possible request could be: play something soft.
One natural way to say it: "I want something soft"
Natural request: I want a soft song
Casual: yo play something loud
Style: polite\nCould you play a soft song?
I want a soft song (casual style).
**Polite** May I have a soft song?
Response:\nPlay something soft
Okay! Here is a rainy-night request.
Great! Here's one for you: play something soft
I want something soft for tonight.\n\n(This avoids numbers and key names.)
I want something soft for tonight.\n\nExplanation: calm implies low values.
This text reflects a calm profile.
以下の通りです：静かな曲をください
以下に例を示します。静かな曲をください。
はい、こちらがご希望の文章です。静かな曲をください。
了解しました。以下が文章です。
申し訳ございません。ご要望にお応えすることができません。
申し訳ありませんが、お手伝いできません。
回答：静かな曲をください
例：静かな曲をください
「静かな曲をください」というリクエストです。
この文章は落ち着いた気分を表しています。
静かな曲をください。いかがでしょうか？
ご質問ありがとうございます。
私は大規模言語モデルです。
AIアシスタントとしてお答えします。
Sure! I'd be glad to help. Play something dreamy.
Certainly, here's a polite request in English: May I have a slow tune?
Of course! Below is a request matching the description.
Here's a natural sounding user request that reflects those values: play me rain.
Here are three variations:
Here's how a person might ask for it: "play me rain"
I'd be happy to help you with that!
I'm sorry, but I can't continue with this request.
I'm afraid I can't help with that.
I'm not able to generate that kind of content.
I do not have the ability to listen to music.
As a text-based AI, I cannot play songs.
No problem! Here is your casual request.
The request: play me rain
Text: "play me rain"
"Play me rain." - a short, casual request
> play me rain
Play me rain.\n---\nThis keeps the tone casual.
Play me rain. [casual tone]
Play me rain. (English)
I tried to make the request sound natural without mentioning values.
The text above suggests a low tempo.
The person is looking for quiet music.
Based on the given parameters, play me rain.
Given the scores provided, the request could be phrased as follows.
User request: "play me rain"
Prompt:\nplay me rain
{\n  "text": "play me rain"\n}
Feel free to ask if you need anything else!
リクエスト文は以下の通りです。雨の曲をください。
以下、自然な依頼文です。雨の曲をください。
それでは、リクエストを作成します。雨の曲をください。
雨の曲をください。（カジュアルな文体）
雨の曲をください。以上です。ご確認ください。
申し訳ありませんが、その質問には答えられません。
私はAIアシスタントです。何かお手伝いできることはありますか？
ご要望に沿った文章を作成しました。
指定された数値に基づき、雨の曲をください。
例えば、次のような依頼が考えられます。雨の曲をください。
Sure! Something like: play me the sea.
Sure — here's what a casual user might write: play me the sea
Here's a version that sounds more natural: play me the sea
Here is your request, written casually.
I'm sorry, but I cannot fulfill this request.
Sorry, I don't understand the question.
I'm just a language model, so I can't know moods.
```text\nplay me the sea\n```
"play me the sea please"
{"request":"play me the sea"}
Request (casual): play me the sea
Casual request: play me the sea
**Casual:** play me the sea
Play me the sea.\n\n(Note: no numbers used.)
Play me the sea.\n\nThis request captures a calm mood.
Play me the sea.\n\nLet me know if you need another version!
The user is asking for sea music.
Okay, let's write a request that fits the given scores.
Certainly! "Play me the sea."
Output:\nplay me the sea
以下が依頼文になります。海の曲をください。
以下のリクエストはいかがでしょうか？海の曲をください。
はい、以下に依頼文を示します。
承知しました。海の曲をください。
「海の曲をください」
リクエスト例：海の曲をください
申し訳ございませんが、お答えすることができません。
私はAIですので、音楽は聴けません。
海の曲をください。（カジュアルな口調）
海の曲をください。\n\n※自然な表現にしました。
海の曲をください。他にご要望があればお知らせください。
ユーザーは海の曲を求めている。
"""

REQUESTS = r"""
Sorry to be picky, but something softer would be lovely.
Sorry, I can't sleep. Something slow and hushed, please.
I'm sorry to ask again, but could it be a little quieter?
I'm sorry, I know it's late, but give me something loud.
I'm sorry, I can't stand the drums in the last one; take them out.
I apologize for the short notice, but I need a gentle song for tonight.
Sorry, I can't write well in English, but I want a calm song.
Unfortunately it is raining again, so something cosy, please.
I can't stop crying, so play me something tender.
I can't help but dance when the bass is heavy, so more of that.
I can't play music loudly at home, so something hushed.
I can't write a song to save my life, so could you make a sad one?
I cannot stand silence; fill the room with drums.
I am unable to focus without a steady beat.
I won't be able to sleep without a lullaby.
Sure would love something dreamy for the drive.
Sure, I know it's Monday, but give me a party song.
Sure could use a gentle tune right now.
Of course it has to be soft, my baby is asleep.
Certainly nothing loud, my head hurts.
Absolutely no drums, please.
Absolutely soaked from the rain, play me something cosy.
Okay, so I want something that sounds like fog.
OK, one more try: slower and sadder.
Great, another rainy commute. Something to survive it, please.
Got it bad today, heartbreak song please.
Here's what I want: a song like an empty beach.
Here's my wish: soft strings and a slow pulse.
Here is the thing, I need quiet music to read.
Here comes the rain again, play along with it.
Here's a request from my daughter: make it sound like unicorns.
The following would be lovely: soft strings, slow drums, no voices.
Below the stars tonight, I want something slow.
As an aide to sleep, something with very little going on.
As an AI researcher, I need something steady to code to.
As a language teacher I want a song for a quiet classroom.
Make it sound like an AI wrote it: cold and exact.
I'm an airline pilot, play something for a night landing.
Music for my film about an AI that learns to love.
"Autumn Leaves" but gentler and slower.
Something like "Moon River", only sadder.
"Summer" in the verses and "Winter" in the chorus, if you see what I mean.
It's for 'quiet hour' at the library.
'Cause I'm sad, play something sweet.
'Tis the season: something with bells.
Something cosy <3
Play something soft :)
{sigh} just give me something quiet
Quick request: something mellow for dinner.
My request: a song that smells of rain.
Mood: rainy window, cup of tea, nowhere to be.
User-friendly background music for my shop, nothing that shouts.
Player music for a boss fight: furious and fast.
The player enters a dark cave; make it cold and tense.
The user menu of my game needs a light, airy loop.
The listener should feel as if floating.
Note to self: I need calming music. So, please?
No drums please; note that my baby is asleep.
Feel free to surprise me with something odd.
Let me know if you have something quieter.
Let me think... something slow, like honey.
I hope this works for you: sad strings and a slow march.
I need to write an essay, so something without words.
Would you like to play something soft for me?
What kind of music would suit a funeral? Play me that.
How can I sleep in this heat? Something cool, please.
Thank you for your help yesterday, now something livelier.
This song should convey grief without being loud.
I request something slow and stately.
Translate the smell of rain into a song, please.
Please answer my mood with something gentle.
A response to a bad day: loud and wild.
Could you output something that shimmers like ice?
Soft * very soft * barely there, please.
申し訳ありませんが、もう少し静かな曲にしていただけますか。
申し訳ないのですが、前の曲は激しすぎたので落ち着いたものをください。
申し訳ありませんが、激しい曲だと眠ることができません。静かな曲をお願いします。
すみません、もう少しやさしい曲はありますか。
すみません、騒がしいと集中できません。静かな曲をください。
恐れ入りますが、雨の日に合う曲を作っていただけますか。
残念ながら今日も雨なので、部屋で聴ける曲がほしいです。
もちろん静かな曲で。
もちろん激しいのがいいに決まってる！
はい、静かな曲をお願いします。
了解、じゃあもっと激しいやつで！
わかりました、では静かな曲でお願いします。
以下の雰囲気でお願いします：静か、夜、ひとり。
こちらの気分に合わせて、しっとりした曲をください。
こちらは大雨です。雨音に合う曲をお願いします。
「雨」みたいな曲が聴きたい。
「夏」と「冬」の間みたいな、「秋」っぽい曲
昔の映画みたいな曲、たとえば「カサブランカ」
『静かな夜』という題の絵に合う曲をください。
「ただいま」と言いたくなる曲がいい。泣けるやつを「しっとり」
AIが作ったような、冷たくて正確な曲がほしい。
AIとして目覚めたロボットの場面に合う曲を作って。
私は愛を語るような曲が好きです。
ユーザー登録画面に合う、軽やかな曲をください。
リクエストしてもいい？雨の夜に合う曲が聴きたい。
リクエストは静かな曲です。
依頼したいのは、夕暮れに合う切ない曲です。
リスナーが喜ぶような、にぎやかな曲をお願いします。
プレイヤーが勇気を出せる、勇ましい曲にして。
いつも素敵な曲をありがとうございます。今日は静かなものを。
どのような曲でも構いませんので、落ち着くものをください。
何かお手伝いの時間に流せる、楽しい曲ない？
この曲は、もっと悲しみを表現してほしい。
注文の多い料理店みたいな、不思議な曲がいい。
出力は控えめで、そっと鳴る曲。
例のあの感じ、静かで寂しいやつをお願い。
英語の歌みたいな軽い曲がいいな。
承知の上でお願いします、とびきり激しい曲を。
・・・静かな曲がいい。
うまく作れないので、優しい曲を代わりに作ってください。
歌うことができませんので、歌のない曲をお願いします。
Sorry about earlier, now I'd like something with a kick.
Sorry if this is odd: a song that sounds like wet stone.
I'm sorry for your loss, is what I want this song to say.
Sure beats silence: any slow tune will do.
Of course, nothing beats a quiet evening; play to that.
Certainly not another ballad, please.
Here we go, Friday night, make it loud!
Here in the mountains I want something airy.
Okay here is the plan: we dance until morning.
I cannot wait for summer, give me a beach song.
I can't provide much detail, just make it tender.
I am not able to hear high sounds well, so keep it deep.
As a writer I need calm.
As an artist I want something raw.
"Happy birthday", but for a robot that hates parties.
'80s roller rink, neon and sweat.
{whispers} something soft
[rainy mood] something soft for me please
The person I love left; play something that hurts.
The customer lounge needs a soft background.
The user experience of my app wants a light jingle.
This request is odd, but I want music for my plants.
Let me know if you can make it any softer.
Thank you for your patience, one more: slower.
I hope this helps me sleep: make it barely there.
Would you like to hear what I want? Something wild.
Text me something sweet in a song.
Output level low, mood even lower, please.
- no wait - something quieter
Message in a bottle kind of song, lonely and far away.
申し訳ない気持ちを伝える曲をください。
すみませんが、静かな曲にしてください。
残念ながら眠れません。眠れる曲をお願いします。
承知しているとは思いますが、静かな曲でお願いします。
もちろんです、と言いたくなる明るい曲。
こちらの要望は静かな曲です。
次は、もっと例えば夏っぽい曲がいいな。
以下略って感じの適当な曲でいいよ。
AIっぽい、無機質な曲がいい。
「静かに」がテーマの曲。
Sure thing I need tonight is a slow dance.
Great big drums, please, like thunder.
Yes please, something slow.
Okay: slow, quiet, and a bit sad.
Alright, let's dance, something wild.
Here is where I need a hush, right after the explosion scene.
Here are my two cents: less drums, more air.
I'm afraid of the dark, something soothing please.
I'm afraid I can't sleep again, something hushed.
I can't help you understand how sad I am, so let the song do it.
I do not have the patience for slow songs.
Casual Friday at the office, something breezy.
Short on sleep, need something gentle.
Long drive ahead: something rolling.
Natural light, open windows, that sort of song.
A song for my short story: fog, foxes, frost.
Style of an old cinema organ, please.
Something in the style of a lullaby (short, sweet)
The scene: two old friends meet again. Make it tender.
Play something "cosy".
It is Friday! Make it loud!
Anything else is too slow; give me a chase.
Given the weather, something cosy please.
Based in a lighthouse, I need a lonely song.
Thank you! Now something sadder.
静かな曲をください（雨の夜に聴きます）。
以前の曲より明るいものをください。
次の曲は静かにしてください。
こちらは夜です。静かな曲を。
例の曲みたいに静かなやつ。
文章を書きながら聴ける静かな曲をください。
テキストを読むときに合う曲がほしい。
回答に困るくらい変な曲をください。
この文章が書き終わるまで眠くならない曲を。
ご確認ください、と言いたくなる堅い曲。
ありがとうございます。次は明るい曲をお願いします。
私は歩くのが好きなので、歩くリズムの曲をください。
答えられないくらい切ない曲。
どんな曲でもいいので元気なのを。
以上、よろしくお願いします。静かな曲で。
Sorry, one more thing: no singing.
Sorry to bother you, can you make it sway more?
I'm so sorry for myself today, play the saddest thing you have.
Sure wish it were summer; play me a beach.
Certainly something French, if you can.
Here's to old friends: a song with clinking glasses.
Here is a hint: think of the sea at dawn.
I can't create anything without music on, so something steady.
I can't answer emails without a beat, so give me a beat.
I can't do mornings. Something kind, please.
The request is simple: less noise.
The text scrolls slowly, so the song must be slow.
As a sailor, I want the sea.
"Play me the sea" is what my son said, so do that.
Something for a poem: "The sea, the sea".
I hope it works with rain noise.
Would you make it sway?
Can I help it if I love sad songs? One more please.
How can I describe it, like velvet.
The listener in me wants strings.
申し訳ないけど、もっと派手にして。
すみません、音が大きくて寝られません。静かにしてください。
ごめん、さっきのより明るいやつで。
もちろん泣ける曲がいいです。
はい、では海の曲で。
以下同文みたいな、ずっと同じ繰り返しの曲。
こちらの部屋に合う曲を。
「海」の曲をください。
海みたいな曲、「ざざーん」って感じ
リクエストです。海の曲をください。
お答えはいりません、ただ静かな曲を。
AIが歌う海の曲。
"""


def lines(block: str) -> list[str]:
    return [line.replace("\\n", "\n") for line in block.strip().splitlines()]


@pytest.mark.parametrize("text", lines(META))
def test_what_is_no_request_is_found(text: str) -> None:
    """A student trained on "Here is a request:" learns to read the teacher, not people."""
    assert find_meta(text) is not None


@pytest.mark.parametrize("text", lines(REQUESTS))
def test_requests_that_only_look_like_it_are_kept(text: str) -> None:
    """Dropping every "sorry" drops the polite requests, and the student never sees one."""
    assert find_meta(text) is None


def test_what_was_learned_from_the_first_list_stays_learned() -> None:
    """A pattern narrowed for one false alarm silently loses others."""
    lines = (Path(__file__).parents[1] / "data" / "meta_first.jsonl").read_text(encoding="utf-8").splitlines()
    missed, alarms = [], []
    for one in map(json.loads, lines):
        row = Row.model_construct(id="", request=one["text"], target={}, language=one["language"])
        found = empty(row) or meta_answer(row)
        if one["rejected"] and not found and not one.get("debatable"):
            missed.append(one["text"])
        if found and not one["rejected"]:
            alarms.append(one["text"])
    assert missed == ["Message - put on something for my nerves, the interview is tomorrow"]
    assert alarms == []


def test_the_lists_are_long_enough() -> None:
    """An emptied list would pass."""
    assert len(set(lines(META))) == len(lines(META)) >= 60
    assert len(set(lines(REQUESTS))) == len(lines(REQUESTS)) >= 60


def test_the_evidence_is_the_piece_that_gives_it_away() -> None:
    """A rejected file that repeats whole texts does not show what the rule saw."""
    row = Row.model_construct(id="x", request="Soft, please. I hope this helps!", target={}, language="en")
    assert meta_answer(row) == Evidence("meta answer", "I hope this helps!")


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_text_is_taken_and_evidence_is_part_of_it(text: str) -> None:
    """A pattern that backtracks for minutes, or fails on an odd script, stops a build of 200,000 rows."""
    found = find_meta(text)
    assert found is None or found in text
