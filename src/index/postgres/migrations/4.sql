-- Which of several databases this is, where it is not the only one that holds collections; at most one row.
CREATE TABLE dino_arrangement (
    is_known boolean PRIMARY KEY DEFAULT true CHECK (is_known),
    -- From 0.
    place integer NOT NULL,
    databases integer NOT NULL,
    -- The same in all of them.
    arrangement text NOT NULL,
    -- In the first of them, whether all have theirs: from then on one without it is another database.
    is_complete boolean NOT NULL DEFAULT false
);
-- In the first of several databases, the name of the parts that the others hold; null where a collection is all here.
ALTER TABLE dino_collections ADD COLUMN parts text;
-- Parts that belong to no collection: those of deleted ones, which the other databases still have to delete, and those that are being made.
CREATE TABLE dino_leftovers (name text COLLATE "C" PRIMARY KEY, is_deleted boolean NOT NULL);
