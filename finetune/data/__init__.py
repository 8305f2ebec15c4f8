"""Prepares data: from raw rows to clean, disjoint sets, with a reason for every row that is left out.

hub          datasets of the Hugging Face Hub
sources      a source of a recipe as a file with a layout
spool        rows on disk while they are prepared
intake       reads, cleans and checks the rows
cleaning     cleaning steps, flaws, boilerplate, personal data
records      rows left out or changed, before and after, on disk
summary      counts of what happened to the rows, and their text
duplicates   rows that repeat, contradict or resemble each other
leaks        training rows that a test file contains too
set_files    validation and test sets from files of their own
division     division into training, validation and test set
prepare      all of it, in order
"""
