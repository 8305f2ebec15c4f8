"""Rows to clean, divided sets with a reason for every row that is not in them.

section      what a recipe says about its data
clean        the steps that a text goes through: those that are safe, and those that are asked for
characters   what nobody sees; the length of a text
preformatted code, which every step leaves alone
flaws        rows that look as if nothing could be learnt from them
boilerplate  sentences that open or end many answers
records      every row that is left out or changed, before and after, on disk
summary      what became of the rows, counted and told
changes      what cleaning did to one row, for the preview
privacy      e-mail addresses, telephone numbers, dates of birth, record numbers
grams        a text's 5-grams, and the sketch by which similar texts are found
duplicates   rows that say nearly the same, by LSH, each pair checked
spool        the rows on disk while this is going on: memory holds some 200 bytes a row, whatever its length
division     training, validation and test set, no group of similar rows in two
prepare      all of it in order
leaks        training rows that a test file holds too
check        can a file be read, and as what
"""
