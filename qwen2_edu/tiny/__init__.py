"""The small world: the texts that the shipped checkpoint learns from, and how it is measured.

words.py (what there is) and plots.py (what can happen) are data; grammar.py compiles them; facts.py
keeps the books; world.py tells a story; check.py reads one back; documents.py, conversations.py and
drills.py make what the model is trained on, with aligned.py and functions.py for what is no story;
rows.py makes it tokens, and train.py is the recipe.
"""
