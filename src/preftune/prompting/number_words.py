"""Numbers that are written as words, and units that stand after a number.

"One" and its likes are left out: they mostly count nothing.
"""

from __future__ import annotations

import re

_ENGLISH = (
    "zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred hundreds thousand thousands "
    "million millions billion billions trillion trillions zillion zillions dozen dozens half halves twice thrice "
    "double triple quadruple third thirds eleventh twelfth twentieth hundredth "
    "quarter quarters fourth fifth sixth seventh eighth ninth tenth"
)
_GERMAN = (
    "null zwei drei vier f\u00fcnf sechs sieben acht neun zehn elf zw\u00f6lf dreizehn vierzehn f\u00fcnfzehn sechzehn "
    "siebzehn achtzehn neunzehn zwanzig drei\u00dfig vierzig f\u00fcnfzig sechzig siebzig achtzig neunzig hundert "
    "tausend dutzend halb halbe halben h\u00e4lfte doppelt dreimal zweimal drittel viertel"
)
_FRENCH = (
    "z\u00e9ro deux trois quatre cinq sept huit dix onze douze treize quatorze quinze seize vingt trente quarante "
    "cinquante soixante cent mille moiti\u00e9 demi demie tiers quart"
)
_SPANISH = (
    "cero dos tres cuatro cinco seis siete ocho nueve diez doce trece catorce quince veinte treinta cuarenta "
    "cincuenta sesenta setenta ochenta noventa cien ciento mil mitad doble triple"
)
WORDS = sorted({*_ENGLISH.split(), *_GERMAN.split(), *_FRENCH.split(), *_SPANISH.split()}, key=lambda word: -len(word))
# Words that are put together: einundzwanzig, zweihundert, anderthalb; veintiuno, doscientos, diecis\u00e9is.
_COMPOUND = (
    r"\w*(?:zehn|zwanzig|drei\u00dfig|vierzig|f\u00fcnfzig|sechzig|siebzig|achtzig|neunzig|hundert|tausend|million)\w*"
    r"|\w+einhalb|anderthalb\w*|veinti\w+|dieci\w+|\w+cient[oa]s|quinient[oa]s"
)
_WORD = rf"(?:{_COMPOUND}|{'|'.join(WORDS)})"
NUMBER_WORD = re.compile(rf"(?i)(?<![\w]){_WORD}(?:(?:[- ]| et |-et-| y )(?:{_WORD}|one|un|une|uno))*(?!\w)")

_SYMBOLS = (
    r"[kmc\u00b5\u03bcn]?m(?:\u00b2|\u00b3|2|3|/s)?|[km\u00b5\u03bc]?g|[mcd]?[lL]|[kM]?W(?:h)?|[kMGT]i?B|[kMG]?Hz|mph|km/h|k?[VAJN]|"
    r"[kM]?Pa|k?cal|lbs?|oz|ft|mi|yd|USD|EUR|GBP|CHF|JPY|[ap]\.?m\.?|[AP]\.?M\.?|ms|min|mins|hrs?|sec|s|h"
)
_NAMES = (
    "second|minute|hour|day|week|month|year|decade|dollar|cent|euro|pound|penny|pence|meter|metre|kilometer|kilometre|"
    "centimeter|centimetre|millimeter|millimetre|mile|inch|foot|yard|gram|kilogram|ton|tonne|ounce|liter|litre|gallon|"
    "degree|percent|time|"
    # German, French, Spanish
    "kilometer|meter|sekunden?|minuten?|stunden?|tagen?|wochen?|monaten?|jahren?|kilogramm|gramm|heure|jour|semaine|mois|"
    "ann\u00e9e|hora|minuto|d\u00eda|semana|mes|a\u00f1o"
)
UNIT = rf"[mk\u00b5]?mol|Mio\.?|Mrd\.?|{_SYMBOLS}|(?i:(?:{_NAMES})s?)|inches|feet|pennies|per[ ]cent"
