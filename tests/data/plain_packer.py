"""A packer in plain Python, written without a look at maxfdl's, to compare with."""


def concatenated_rows(documents, length, num_rows):
    """Returns rows of (token, document, place in the piece) cut from one stream."""
    rows, row = [], []
    for document, tokens in enumerate(documents):
        place = 0
        for token in tokens:
            row.append((token, document, place))
            place += 1
            if len(row) == length:
                rows.append(row)
                row, place = [], 0
                if len(rows) == num_rows:
                    return rows
    raise AssertionError("too few documents")


def fields_of(row, length, padding):
    """Returns the five fields of a batch for one row, as lists."""
    fields = {"tokens": [], "targets": [], "segment_ids": [], "positions": []}
    fields["weights"] = []
    segment = 0
    for i in range(length):
        if i >= len(row):
            values = (padding, padding, 0, 0, 0.0)
        else:
            token, document, place = row[i]
            segment += place == 0
            same = i + 1 < len(row) and row[i + 1][2] == place + 1
            target = row[i + 1][0] if same else padding
            values = (token, target, segment, place, float(same))
        for name, value in zip(fields, values, strict=True):
            fields[name].append(value)
    return fields
