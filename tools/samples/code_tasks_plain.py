"""Functions without a number of their own as tasks, in the form of `code_tasks`."""

from __future__ import annotations

from tools.samples.code_tasks import read_tasks

PLAIN_TASKS = read_tasks(
    """
total add_up sum_of_list | numbers values items
returns the sum of all numbers in a list
sum({x})
[1, 2, 3]; []; [-5, 5, 10]
result = 0
for number in {x}:
    result += number
return result

product multiply_numbers product_of_list | numbers values items
returns the product of all numbers in a list
math.prod({x})
[1, 2, 3]; [7]; [-5, 5, 2]
result = 1
for number in {x}:
    result *= number
return result

largest find_largest biggest_number | numbers values items
returns the largest number in a list
max({x})
[1, 9, 3]; [-7, -2]; [4]
result = {x}[0]
for number in {x}:
    if number > result:
        result = number
return result

smallest find_smallest least_number | numbers values items
returns the smallest number in a list
min({x})
[1, 9, 3]; [-7, -2]; [4]
result = {x}[0]
for number in {x}:
    if number < result:
        result = number
return result

average mean_of_list mean_value | numbers values items
returns the average of the numbers in a list
sum({x}) / len({x})
[1, 2, 3]; [7]; [-5, 5, 6]
total = 0
for number in {x}:
    total += number
return total / len({x})

keep_even even_numbers only_even | numbers values items
returns the even numbers of a list
[number for number in {x} if number % 2 == 0]
[1, 2, 3, 4]; []; [7, 10]
result = []
for number in {x}:
    if number % 2 == 0:
        result.append(number)
return result

count_odd how_many_odd number_of_odd | numbers values items
returns how many odd numbers a list has
sum(1 for number in {x} if number % 2 == 1)
[1, 2, 3, 4]; []; [8, 10]
count = 0
for number in {x}:
    if number % 2 == 1:
        count += 1
return count

squares square_all squares_of_list | numbers values items
returns the squares of the numbers in a list
[number ** 2 for number in {x}]
[1, 2, 3]; []; [-4, 10]
result = []
for number in {x}:
    result.append(number ** 2)
return result

without_repeats unique_items remove_repeats | items values elements
returns a list without repeated items in the order of their first place
list(dict.fromkeys({x}))
[1, 2, 1, 3, 2]; []; ['a', 'a']
result = []
for item in {x}:
    if item not in result:
        result.append(item)
return result

turn_around reverse_text backwards | text word line
returns a text with its letters in reverse order
{x}[::-1]
'moon'; ''; 'level'
result = ''
for letter in {x}:
    result = letter + result
return result

is_palindrome reads_same_backwards same_both_ways | text word line
tells whether a text reads the same forwards and backwards
{x} == {x}[::-1]
'level'; 'river'; ''
for place in range(len({x})):
    if {x}[place] != {x}[len({x}) - 1 - place]:
        return False
return True

count_vowels vowels_in number_of_vowels | text word line
returns how many vowels a text has
sum(1 for letter in {x} if letter in 'aeiou')
'garden'; 'sky'; 'banana'
count = 0
for letter in {x}:
    if letter in 'aeiou':
        count += 1
return count

initials first_letters initials_of | words names texts
returns a text made of the first letters of the words in a list
''.join(word[0] for word in {x})
['sun', 'sea']; []; ['Anna', 'Berg', 'Curie']
result = ''
for word in {x}:
    result += word[0]
return result

word_lengths lengths_of_words letter_counts | words names texts
returns a list with the length of each word in a list
[len(word) for word in {x}]
['sun', 'river']; []; ['a', 'to', 'elephant']
result = []
for word in {x}:
    result.append(len(word))
return result

longest_word find_longest most_letters | words names texts
returns the first of the longest words in a list
max({x}, key=len)
['sun', 'river', 'sea']; ['a']; ['on', 'to']
result = {x}[0]
for word in {x}:
    if len(word) > len(result):
        result = word
return result

factorial product_up_to factorial_of | number n value
returns the product of the whole numbers from 1 to its argument
math.factorial({x})
5; 1; 0
result = 1
for factor in range(2, {x} + 1):
    result *= factor
return result

sum_up_to add_numbers_up_to triangle_number | number n limit
returns the sum of the whole numbers from 1 to its argument
{x} * ({x} + 1) // 2
10; 1; 100
total = 0
for step in range(1, {x} + 1):
    total += step
return total

divisors find_divisors divisors_of | number n value
returns a list of all numbers from 1 on that divide its argument
[step for step in range(1, {x} + 1) if {x} % step == 0]
12; 7; 1
result = []
for step in range(1, {x} + 1):
    if {x} % step == 0:
        result.append(step)
return result

is_prime check_prime prime | number n value
tells whether a number is prime
{x} > 1 and all({x} % step for step in range(2, {x}))
7; 12; 1
if {x} < 2:
    return False
for step in range(2, {x}):
    if {x} % step == 0:
        return False
return True

digit_sum sum_of_digits add_digits | number n value
returns the sum of the digits of a whole number
sum(int(digit) for digit in str({x}))
123; 7; 9050
total = 0
for digit in str({x}):
    total += int(digit)
return total

running_totals totals_so_far partial_sums | numbers values items
returns a list with the sum of the numbers up to each place of a list
[sum({x}[: place + 1]) for place in range(len({x}))]
[1, 2, 3]; []; [5, -5, 10]
result = []
total = 0
for number in {x}:
    total += number
    result.append(total)
return result

count_items item_counts tally | items values elements
returns a dictionary that tells how often each item of a list occurs
dict((item, {x}.count(item)) for item in {x})
['a', 'b', 'a']; []; [1, 1, 1]
counts = {}
for item in {x}:
    counts[item] = counts.get(item, 0) + 1
return counts

spread range_of_list difference_of_ends | numbers values items
returns the difference between the largest and the smallest number in a list
max({x}) - min({x})
[1, 9, 3]; [4]; [-2, 6]
low = high = {x}[0]
for number in {x}:
    if number < low:
        low = number
    if number > high:
        high = number
return high - low

flatten join_lists one_list | lists parts groups
joins the lists in a list into one list
[item for part in {x} for item in part]
[[1, 2], [3]]; []; [[], ['a']]
result = []
for part in {x}:
    for item in part:
        result.append(item)
return result

pairs neighbours pairs_of_neighbours | items values elements
returns a list of tuples with each item of a list and the item after it
list(zip({x}, {x}[1:]))
[1, 2, 3]; [1]; ['a', 'b']
result = []
for place in range(len({x}) - 1):
    result.append(({x}[place], {x}[place + 1]))
return result

absolute without_sign distance_from_zero | number n value
returns a number without its sign
abs({x})
-4; 7; 0
if {x} < 0:
    return -{x}
return {x}
"""
)
