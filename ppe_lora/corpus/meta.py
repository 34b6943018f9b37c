"""Answers of a teacher that are no request: refusals, talk about the request, and wrapping around it.

A person may be sorry, sure or unable to sleep, so a word alone decides nothing: the patterns look for what only a
language model says, or says of its own answer. The labelled lists are
`tests/data/meta_*.jsonl` and in `tests/unit/test_corpus_meta.py`.
"""

import re

_MODEL = r"(?:ai|artificial intelligence|(?:large )?language model)(?: (?:language )?model| assistant)?"
_TEXT = r"(?:requests?|prompts?|texts?|messages?|examples?|versions?|responses?|sentences?|translations?|phrasings?)"
_TEXT_JA = r"(?:依頼文?|リクエスト文?|文章|テキスト|例文?|回答|文面)"
_STYLE = r"(?:polite|casual|short|long|formal|informal|natural)"
_CANNOT = r"(?:i (?:cannot|can ?not|can't|won't be able to|am (?:unable|not able) to)|i'm (?:unable|not able) to)"
_SAYS = (
    r"(?:conveys?|impl(?:y|ies)|reflects?|captures?|express(?:es)?|suggests?|avoids?|indicates?"
    r"|describes?|hints?"
    r"|does(?: not|n't)|uses?|mentions?)"
)
_CONSENT = r"(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|alright|great|got it|understood|yes|no problem)"
_OWN_WORDS = (
    r"(?:(?:the|an?) )?(?:thing|plan|deal|idea|thought|hint|wish|picture|mood|vibe|scene|situation"
    r"|story|catch)s?\b|[^:\n]*\b(?:from|of) (?:my|our|me)\b"
)
_LABEL = (
    rf"(?:(?:user|song|music|player|sample|example|possible|{_STYLE}) )?(?:request|prompt|output"
    rf"|response|message|text|version)"
    rf"|user|player|listener|assistant|answer|english|japanese|translation|example|style|tone|language|{_STYLE}(?:"
    rf" style| tone)?"
    rf"|{_TEXT_JA}|リクエスト例|ユーザー|プレイヤー|アシスタント|出力|日本語|英語|英訳|和訳|翻訳|本文|丁寧"
    rf"|カジュアル|短文|長文|スタイル|(?:ユーザー|リスナー)の(?:要望|発話|依頼|リクエスト)例?"
)
_NUMBERED = rf"(?:{_LABEL}|リクエスト|options?|variants?|variations?|案|パターン|候補) ?(?:[0-9０-９]+|[a-cａ-ｃ])"
_CANNOT_JA = r"(?:は|が|も|に)?(?:でき|出来)(?:ません|かね|ない(?:です|ため|ので|[。、！!]|$))|(?:致|いた)?しかね"
_REFUSED_JA = r"(?:お?応え|お?答え|対応|作成|生成|提供|お手伝い|回答|お受け|ご?案内|処理)"

_REFUSALS = (
    rf"{_CANNOT} (?:\w+ )?(?:assist|fulfil|comply|accommodate|(?:continue|proceed) with (?:this|that"
    rf"|the|your)\b"
    r"|help (?:you with|with (?:that|this|your)|you[.,!]))\w*",
    rf"{_CANNOT} (?:\w+ )?(?:create|generate|provide|produce|write|answer|complete|process)"
    r" (?:(?:(?:a|an|the|any|this|that|such|your) )?(?:(?:kind|type|sort) of )?(?:\w+ )?(?:request"
    r"|response|content|prompt|text)s?\b|(?:that|this)\b[.,!])",
    r"(?:sorry|apolog\w+|unfortunately|regret)[^.!?]{0,20}"
    rf"{_CANNOT} (?:\w+ )?(?:create|generate|provide|produce|write|play|do) (?:music|audio|that|this|it)\b",
    rf"\bas an? (?:\w+-based )?{_MODEL}(?:,| i\b| (?:developed|trained|created|built|designed)\b)",
    rf"\bi(?:'m| am)(?: just| only)? an? {_MODEL}\b(?! \w*(?:er|ist)\b)",
    r"\bi'm afraid i (?:can't|cannot) (?:help|assist|do) |\bi'd be (?:happy|glad) to (?:help|assist)",
    r"\bi (?:don't|do not) (?:understand the (?:question|request|task)|have (?:enough (?:information"
    r"|context|details)|access to|the ability|personal|feelings))",
    rf"{_CANNOT} (?:create|generate|provide|produce|write) (?:an?|any) (?:message|sentence)s? (?:like|with) th",
    r"\bi(?:'m| am)? (?:not|don't|do not) (?:feel )?comfortable (?:writing|creating|generating|producing|providing)",
    r"\bdecline to (?:produce|write|create|generate|answer|provide|respond)\b",
    r"\bmy (?:guidelines|programming|polic(?:y|ies))\b[^.]{0,30}(?:prevent|prohibit|forbid|do(?:es)?(?: no|n')t)",
    r"\b(?:reach out to|contact|call) (?:an?|your local) [\w ]{0,25}(?:helpline|hotline|professional|counsell?or)",
    r"\bthis combination of \w+ (?:is|isn't|cannot|can't|does)\b",
    r"\b(?:what|which) (?:kind|type|sort) of (?:request|text|message)s? (?:would you|you(?: woul|')d|do you|should i)",
    r"\bplease provide (?:me with )?(?:more|additional|further|the) (?:context|details|information|specific)",
    r"^(?:申し訳(?:ありません|ございません|ないです)|すみません)[。！!]*$",
    rf"{_REFUSED_JA}(?:する?こと|いた|致)?(?:{_CANNOT_JA})",
    r"(?:リクエスト|ご?依頼|ご?要望)(?:に|を|は)[^。]{0,12}(?:できません|できかね|しかね)",
    r"(?:^|[、。 ]|私は)ai(?:言語モデル)?(?:として|なので|ですので|であるため)[、,]|(?:^|[、。 ])aiである私",
    r"aiアシスタント(?:として|です|なので)|私は(?:大規模)?言語モデル|言語モデル(?:として|ですので|なので)",
    r"控えさせていただき(?:ます|ました)|(?:ガイドライン|ポリシー|規約)(?:に(?:反|違反|抵触|従)|上)",
    r"(?:相談窓口|専門家|カウンセラー)[^。]{0,10}(?:連絡|相談)(?:して|を)",
    r"(?:感情|数値|値|スコア)の組み合わせで(?:は|、)|(?:対象|目標)(?:となる|の)?(?:数値|値|スコア|パラメータ)",
)
_ANNOUNCEMENTS = (
    rf"^(?:{_CONSENT}\b[^\n]{{0,30}}?[!,.:—-]+\s*)?here(?:'s| is| are) (?!{_OWN_WORDS})"
    r"(?:a|an|one|some|your|another|the|my (?:attempt|version|take|try|suggestion|text))\b[^:\n]{0,40}:",
    rf"\bhere(?:'s| is| are) (?:a|an|the|one|your|some|another)(?: [\w-]+){{0,3}}? {_TEXT}\b(?! (?:from"
    rf"|of) (?:my|our|me)\b)",
    rf"^{_CONSENT}[!,.]+\s*here(?:'s| is| are) (?:a|an|one|some|another) (?!{_OWN_WORDS})",
    r"\bhere are (?:two|three|some|a few|several)\b|\bhere(?:'s| is) (?:how|what) (?:a|the|one"
    r"|someone)\b|\bhere you (?:go|are)\b",
    r"^(?:sure(?: thing)?|certainly|of course|absolutely)!",
    r"^(?:sure|certainly|of course|absolutely), (?:i can (?:help|do|write|create|provide)|i'd be"
    r" (?:happy|glad)|happy to)",
    rf"^(?:below|the following) (?:is|are) (?:\w+ ){{0,3}}{_TEXT}\b",
    rf"\b(?:possible|sample|suitable|alternative|natural(?:-sounding)?) (?:ways?|{_TEXT})\b[^.\n]{{0,40}}:",
    rf"(?:(?:以下|こちら)(?:が|は|に)|(?:以下|次)の(?:よう|通り|とおり))[^。]{{0,12}}?(?:{_TEXT_JA}|リクエスト)",
    r"以下の?(?:よう|通り|とおり)(?:です|になり|に[示記])|以下に[^。]{0,10}(?:示し|記し|挙げ|作成|提案|紹介)|^以下、",
    rf"以下の(?:リクエスト|{_TEXT_JA})",
    rf"^{_CONSENT}[!,.:]+\s*(?:\"[^\"]*\"|“[^”]*”)\s*$",
    r"^let me (?:write|create|craft|draft|compose|phrase)\b[^:\n]{0,30}:|^as requested[,:]",
    rf"^(?:{_CONSENT}[!,.]+\s*)?in an? (?:\w+,? ){{1,2}}(?:tone|style|voice)\b[^:\n]{{0,20}}:",
    r"\bthe (?:user|listener|person|customer)s? (?:would|might|could|may) (?:say|ask|request|want)\b",
    r"^こちら(?:は|で)いかがでしょう|」(?:は|で|などは?)いかがでしょう|文章?が考えられ(?:ます|る)",
    r"^(?:それでは|では)、?(?:作成|ご提案|お作り)(?:します|いたします)",
    r"(?:ご指定|ご指示|与えられた)(?:の|いただいた)?(?:感情|条件|数値|値|スコア|設定)",
    rf"{_TEXT_JA}です\s*[:：]|文章?に(?:します|しました|仕上げ)|」という文章?(?:で|は)",
    rf"(?:リクエスト|{_TEXT_JA})を(?:作成|生成|提案|お届け|書き(?:ます|まし))",
    rf"という(?:{_TEXT_JA}|リクエスト)(?:です|になり|は|で)",
    r"^(?:はい、)?(?:承知(?:いた|致)?しました|かしこまりました)|^もちろんです[。！!]",
)
_WRAPPING = (
    rf"^(?:[*_#>\s]*)(?:the )?(?:{_LABEL}|リクエスト)(?:[*_]*\s*[:：]|\*\*)|^【(?:{_LABEL}|リクエスト)】",
    rf"(?:^|\n|[。.] ?){_NUMBERED}\s*[:：]|\n\s*(?:{_LABEL}|リクエスト)\s*[:：]|^{_TEXT_JA}「[^」]*」\s*$",
    r"^\s*1[.)] [^\n]*\n\s*2[.)] |\|\s*-{3,}\s*\||[（(]ここに[^）)]*(?:記入|入力)",
    r"```|^\s*#+ |\*\*[^*]+\*\*|^\s*(?:[-*•] (?![^\n]* - )|> |・(?!・))|\n---",
    r"^\s*(?:\{\s*\"|\[\s*[\"{])|</?[a-z]\w*>",
    r"\[(?:insert|your|name|mood|occasion|genre|artist)\b[^\]]*\]",
    r"\{[a-z]+_[a-z_]+\}|\b(?:for|of|in|with|like) \{[a-z]+\}",
    r"^\s*\"[^\"]*\"\s*(?:$|[-–—])|^\s*“[^“”]*”\s*$|^\s*'[^']*[.!?]'\s*$|^\s*«[^«»]*»\s*$",
    r"^\s*「[^「」]*」[。]?\s*$|^\s*『[^『』]*』[。]?\s*$",
)
_COMMENTS = (
    r"^(?:(?:okay|ok|so|alright),? )?the (?:user|person|listener|customer|speaker)"
    r" (?:is (?:asking|requesting|looking)|wants|would like|requests|asks|seeks)\b",
    rf"\bthis (?:wording|{_TEXT}) (?:\w+ )?{_SAYS}\b|[\"”(（\[]\s*this (?:\w+ )?{_SAYS}\b",
    rf"[(（\[]the (?:tone|wording|{_TEXT}) (?:\w+ )?{_SAYS}\b|\bthe (?:scores|values|target) (?:\w+ )?{_SAYS}\b",
    r"[(（](?:word count\b|[0-9０-９]+ ?(?:words|characters|文字|字)[)）])",
    r"\bnote: (?:i|this|the (?:request|text|tone))\b|\b(?:so|and) they (?:would|might) (?:ask|say|request)\b",
    r"^[^ぁ-ヿ一-鿿]+[.!?]\s*[(（][^)）]*[ぁ-ん][^)）]*[)）]\s*$|[。！？]\s*[(（][a-z][^()（）ぁ-ヿ]{8,}[.!?][)）]\s*$",
    r"[(（][^()（）]*(?:表現|反映)し(?:まし|ていま)[^()（）]*[)）]|※[^\n]*(?:表現し|数字|数値|依頼文|文章|リクエスト)",
    rf"[(\[](?:in )?(?:(?:an? )?{_STYLE}(?: (?:style|tone|request|version|language))?|english|japanese)[)\]]",
    r"[(（][^)）]{0,12}(?:文体|口調|敬語)[^)）]{0,6}[)）]",
    r"\b(?:given|provided|specified|target) (?:parameters|scores|values|numbers|profile)\b",
    r"\b(?:parameters|scores|values|profile) (?:provided|given|above)\b|(?:指定|提示"
    r"|設定)された?(?:数値|値|スコア|パラメータ)",
    r"\bthe (?:request|text|prompt|message)s? (?:above|below|could be|should be|sounds?)\b|\b(?:make"
    r"|keep) the request\b",
    r"[(（](?:note|translation|explanation|注|補足)\s*[:：]|\n\s*(?:note|explanation|translation|補足"
    r"|注|解説|説明|意図)\s*[:：]|\n\s*※",
    r"(?:この|上記の)(?:リクエスト|依頼文?|文章?|テキスト)(?:は|で)[^。]{0,40}(?:表|示|反映|意味|含|避け|伝え)",
    r"\b(?:i|we) need to (?:write|create|generate|produce|phrase) (?:a|the|this) (?:\w+ )?(?:request|text|message)",
    r"\bhow to phrase (?:this|it|the)\b|\bwithout (?:using |naming |stating )?(?:any )?(?:numbers|scores)\b",
    r"^(?:この)?(?:ユーザー|依頼者|リスナー)は[^。]*(?:(?:求め|望ん|希望し|探し)て(?:いる|います)|はずです|でしょう)",
)
_SERVICE = (
    r"\blet me know if you(?:'d| would)? (?:like|want|need) (?:me to|any changes|any adjustments"
    r"|another|anything else)",
    r"\bi hope (?:this|that|it) (?:helps|works|meets|fits)(?: (?:you|your \w+))?\s*(?:[.!]|$)",
    r"\bwould you like me to\b|\bhow (?:can|may) i (?:help|assist) you\b",
    r"\bwhat (?:kind|type|sort) of (?:music|song)s? (?:would|do) you (?:like|want|have in mind)\b",
    r"\bthank(?:s| you) for your (?:request|message|prompt|question)\b",
    r"(?:リクエスト|ご依頼|お問い合わせ|ご質問|ご相談)(?:を|いただき|頂き|、)*ありがとうございます",
    r"(?:ご希望|ご要望)(?:が|は)?(?:あれば|ございましたら|ありましたら)[^。]*(?:ください|ませ)",
    r"ご(?:希望|要望)に応じて|他の(?:パターン|案|表現|言い方|バージョン)[^。]{0,10}(?:必要でし|ご希望|ご要望|お知らせ)",
    r"どの(?:ような|ように)[^。]{0,6}(?:曲|音楽)(?:を|が)(?:お探し|ご希望|お好み|お望み)",
    r"[。！!\n]\s*(?:こちらで|このような\w{0,3}で)?いかがでしょうか[？?。]*\s*$|[。！]以上です|ご確認ください。?\s*$",
    r"\bfeel free to (?:ask|reach out|let me know)\b|その(?:質問|内容)(?:に|は|を)[^。]{0,12}(?:ません|かね)",
)
_PATTERNS = (*_REFUSALS, *_ANNOUNCEMENTS, *_WRAPPING, *_COMMENTS, *_SERVICE)
_META = re.compile("|".join(f"(?:{pattern})" for pattern in _PATTERNS), re.IGNORECASE)


def find_meta(request: str) -> str | None:
    """The piece of a text by which it is no request but a teacher's talk, at most 80 characters of it, or None.

    Example:
        >>> find_meta("Here is a request: soft strings"), find_meta("Sorry to be picky, but softer, please")
        ('Here is a request', None)
    """
    found = _META.search(request.replace("’", "'"))  # one character for one: places stay the same
    return request[found.start() : found.end()][:80] if found else None
