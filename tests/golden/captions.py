#!/usr/bin/env python3
"""Words and scores of captions, by pycocoevalcap 1.2 (its tokenizer is Stanford's CoreNLP 3.4.1, so Java is needed).
usage: pip install pycocoevalcap==1.2 numpy; python captions.py OUT
All captions are invented. `wrong` is CIDEr after mistakes: words split at white space, idf over the hypotheses too, no penalty for
length."""
import json, math, sys
import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

# Hypothesis and references of each picture.
ORDINARY = [
    ['A man is riding a brown horse on the beach.', 'A man rides a horse along the beach.', 'Someone on a horse, near the sea.', 'a person riding a horse on the sand'],
    ['two dogs play with a red ball', 'Two dogs are playing with a ball in the grass.', 'A pair of dogs chases a red ball.', 'The dogs are chasing a ball.'],
    ['A woman is cutting an onion on a cutting board.', 'A woman chops an onion.', 'Someone cuts up an onion on a wooden board.', "A cook's hands slice an onion."],
    ['a kid is playing the guitar', "A boy plays the guitar in his parents' kitchen.", 'The child is playing a guitar and singing.', 'a boy with a guitar'],
    ['The train is leaving the station.', 'A train leaves an empty station.', 'A blue train pulls out of the station at 10:30 a.m.', 'the train is moving'],
    ['a cat sleeps on a chair', "There's a cat that doesn't want to get up.", 'A cat is sleeping on a chair.', 'A grey cat, asleep on a wooden chair!'],
    ['people are dancing in the street', 'A crowd of people dance in the street.', 'Dancers in colourful costumes perform in a street.', 'People dancing.'],
    ['a car is driving down the road the road the road', 'A car drives down a winding road.', 'A red sports car speeds along a mountain road.', 'car on road'],
    ['', 'A man pours milk into a glass.', 'Milk is being poured into a glass.', 'someone pours a glass of milk'],
    ['A chef adds 2 cups of flour to the bowl', 'The chef adds two cups of flour, and stirs.', 'Add 2 cups of flour to the bowl.', 'flour is put in a bowl'],
    ['a surfer rides a big wave', 'A surfer rides a huge wave.', 'a man surfing on a wave in the ocean', 'The surfer is riding the wave, but he falls.'],
    ['a man and a woman are talking', 'Two people talk.', 'A man and a woman are talking to each other on a couch.', 'They talk -- and laugh.'],
]
ODD = [
    ['A man (in a hat) says "hello" to the U.S. team', 'A man says "hello" to his team (from the U.S.).', 'He greets the U.S. team...'],
    ['add 1 1/2 cups of sugar, don\u2019t stir', 'Add 1 1/2 cups of sugar; don\'t stir it!', 'Add 1\u00bd cups of sugar.'],
    ['the well-known AT&T logo on a t-shirt?!', 'A t-shirt with the AT&T logo', 'AT&T\'s well-known logo, on a white T-shirt.'],
    ['It costs $5.50, i.e. 50% of 1,000 yen', 'It costs $5.50', 'The price is 5.50 dollars (50% off).'],
    ['.', 'A caption without any full stop', 'nothing!'],
    ['he cannot find www.example.com and/or photo.jpg', 'He can not find the file photo.jpg', 'he\u2019s looking for www.example.com'],
]
# Captions whose words are compared.
WORDS = """\
Don't, doesn't, can't, won't, shan't and couldn't've; DON'T! don\u2019t don`t ain't
I'm here, you're there, he's gone, we've won, they'll see, she'd go: it's its' it's. IT'S I'LL we'Re
cannot gonna gotta wanna lemme gimme 'tis 'twas dunno cannots cannot.
rock 'n' roll, rock'n'roll, fish 'n chips, get 'em 'til dawn 'cause o'clock O'Brien o'neill ma'am y'all qu'il l'eau d'Artagnan jack-o'-lantern
the dog's bone, the dogs' bones, James' hat, children's books, the 1990's and the '90s, class of '99 and '05, 80's
Mr. Smith, Mrs. Jones and Dr. Who live in St. Louis, U.S.A. at 5 p.m. in Jan. and Sept. with Jr. and Sr. etc.
Apple Inc. and Ford Motor Co. vs. the U.S. Army Corp., e.g. in Calif. or Mass. in no. 5, No. 7, fig. 2 and the no.
a man in oz. and lb. and vol. and sat. on the sun. in ill. health, he said no. to it
plan b. The next, plan B. the next, J. K. Rowling, J.K. Rowling, a.b.c. u.s.-based, non-U.S. ph.d. Ph.D. a.k.a. R.I.P.
he wears size M.
the next caption decides about the letter before
vitamin c.
A capital decides otherwise
1,000 3.5 .5 -5 +5 5-6 $5 $1,000.50 US$5 \u20ac5 \u00a35 5\u00a2 50% 100 % #1 10:30 10:30am 5pm 16:9 12/25/2010 2010-12-25 1st 2nd 4x4 3D
1/2 cup, 1 1/2 cups, 11/2, 1\u00bd, \u00bd, \u00be, 3/4-inch, 24/7, and/or, a/b/c, a / b, one/two-three, (555) 555-1234, 555-1234
http://www.example.com/a?b=c. www.example.com, example.org me@example.com @someone #hashtag photo.jpg 001.jpg hello.world the end.The start
"double" 'single' ``latex'' \u201ccurly\u201d \u2018curly\u2019 \u00abangle\u00bb a "quote 'inside' it"
(round) [square] {curly} <unk> <b>bold</b> a < b > c -LRB- :) :-( ;-) :D
well-known state-of-the-art five-year-old's pre- and post-war - dash -- dash --- dash \u2013 \u2014 a--b mid-air t-shirt 1.5-mile u_v _w
wait... what.. is. this?! !!! ?? . . . \u2026 a...b one,two;three:four. a , b .
AT&T R&B b&w black & white A&W M&M's C++ c# F# a+b 2*3 x=5 ** * __ ~ ^ | \\ / @ & &amp; &lt;
caf\u00e9 na\u00efve \u00dcber jalape\u00f1o \u65e5\u672c\u8a9e \u0395\u03bb\u03bb\u03ac\u03b4\u03b1 20\u00b0C 72\u00b0F m\u00b2 \u2122 \u2665 \U0001f600 \u2192 \u00d7
colour grey theatre; A MAN WITH A TV. etc., (etc.) hello., 5th., end

  spaces\tand tabs\u00a0 between words  """.split('\n')

def split(text):
    return [{'caption': c} for c in text]

def tokenized(pictures):
    read = PTBTokenizer().tokenize
    return read({i: split(p[:1]) for i, p in enumerate(pictures)}), read({i: split(p[1:]) for i, p in enumerate(pictures)})

def scores(hypotheses, references):
    bleu = Bleu(4).compute_score(references, hypotheses, verbose=0)[0]
    return {'cider': float(Cider().compute_score(references, hypotheses)[0]), 'bleu4': float(bleu[3]), 'bleu': [float(b) for b in bleu],
            'rouge_l': float(Rouge().compute_score(references, hypotheses)[0])}

def grams(text, n):
    words = text.split()
    return [tuple(words[i:i + n]) for i in range(len(words) - n + 1)]

def cider(hypotheses, references, also=(), penalty=True):
    """CIDEr-D written from its formula, for the mistakes."""
    count, value = len(references), 0
    documents = [[*references[i], *(hypotheses[i] if also else ())] for i in references]
    seen = [{g for text in d for n in range(1, 5) for g in grams(text, n)} for d in documents]
    for i in references:
        for reference in references[i]:
            for n in range(1, 5):
                def weighed(text):
                    all = grams(text, n)
                    return {g: all.count(g) * math.log(count / max(1, sum(g in s for s in seen))) for g in all}
                h, r = weighed(hypotheses[i][0]), weighed(reference)
                norms = math.hypot(*h.values()) * math.hypot(*r.values())
                delta = len(grams(hypotheses[i][0], 2)) - len(grams(reference, 2)) if penalty else 0
                product = sum(min(h[g], r.get(g, 0)) * r.get(g, 0) for g in h)
                value += product / (norms or 1) * math.exp(-delta ** 2 / 72) / len(references[i]) / 4
    return 10 * value / count

def wrong(pictures, hypotheses, references):
    plain = [{i: [t.lower() for t in part(p)] for i, p in enumerate(pictures)} for part in (lambda p: p[:1], lambda p: p[1:])]
    assert abs(cider(hypotheses, references) - scores(hypotheses, references)['cider']) < 1e-9
    return {'white_space': cider(*plain), 'idf_of_all': cider(hypotheses, references, also=True), 'no_penalty': cider(hypotheses, references, penalty=False)}

def main():
    words = PTBTokenizer().tokenize({0: split(WORDS)})[0]
    out = {'words': [[a, b] for a, b in zip(WORDS, words, strict=True)], 'sets': []}
    for name, pictures in (('ordinary', ORDINARY), ('odd', ODD), ('one_picture', ORDINARY[:1])):
        hypotheses, references = tokenized(pictures)
        out['sets'].append({'name': name, 'captions': pictures, 'scores': scores(hypotheses, references),
                            'wrong': wrong(pictures, hypotheses, references) if len(pictures) > 1 else {}})
        print(name, out['sets'][-1]['scores'], out['sets'][-1]['wrong'])
    with open(f'{sys.argv[1]}/captions.json', 'w') as file:
        json.dump(out, file, indent=1)

main()
