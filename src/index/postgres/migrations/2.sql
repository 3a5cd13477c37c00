-- What is stored of each item: null where it is one vector of a picture, else how pictures become patches. The tables of collections of
-- patches have a column for them.
ALTER TABLE dino_collections ADD COLUMN kind jsonb;
